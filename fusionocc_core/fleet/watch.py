"""How far a run is, as the shared folder tells it: the same for every engine and every machine."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from fusionocc_core.fleet.background import NowAndThen
from fusionocc_core.fleet.claims import Claims
from fusionocc_core.fleet.store import Store
from fusionocc_core.fleet.worker import Job

LOOK_EVERY_S = 1.0


class Watch(NowAndThen):
    """Inside the block a thread tells now and then how many keyframes are done, of units in work too.

    Args:
        job: what is watched.
        tell: called with the number of keyframes that are done.
    """

    def __init__(self, job: Job, tell: Callable[[int], None]) -> None:
        super().__init__(LOOK_EVERY_S, what="progress cannot be read")
        self._tell, self._store = tell, Store(job.out)
        self._claims = Claims(self._store.claims, lease_s=job.lease_s)
        self._lengths = {unit.name: len(unit) for unit in job.units}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell for the last time."""
        super().__exit__(kind, error, trace)
        self._tell(self.keyframes_done())

    def keyframes_done(self) -> int:
        """Of the whole job, whoever did them and when."""
        done = self._store.done() & self._lengths.keys()
        in_work = self._claims.keyframes_in_work(self._lengths.keys() - done)
        return sum(self._lengths[name] for name in done) + in_work

    def act(self) -> None:
        """Tell."""
        self._tell(self.keyframes_done())
