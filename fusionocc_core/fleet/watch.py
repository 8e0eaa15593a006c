"""How far a run is, as the shared folder tells it: the same for every engine and every machine."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType

from fusionocc_core.fleet.claims import Claims
from fusionocc_core.fleet.store import Store
from fusionocc_core.fleet.worker import Job

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0


class Watch:
    """Inside the block a thread tells now and then how many keyframes are done, of units in work too.

    Args:
        job: what is watched.
        tell: called with the number of keyframes that are done.
    """

    def __init__(self, job: Job, tell: Callable[[int], None]) -> None:
        self._tell, self._store = tell, Store(job.out)
        self._claims = Claims(self._store.claims, lease_s=job.lease_s)
        self._lengths = {unit.name: len(unit) for unit in job.units}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell for the last time."""
        self._over.set()
        self._thread.join()
        self._tell(self.keyframes_done())

    def keyframes_done(self) -> int:
        """Of the whole job, whoever did them and when."""
        done = self._store.done() & self._lengths.keys()
        in_work = self._claims.keyframes_in_work(self._lengths.keys() - done)
        return sum(self._lengths[name] for name in done) + in_work

    def _run(self) -> None:
        while not self._over.wait(LOOK_EVERY_S):
            try:
                self._tell(self.keyframes_done())
            except OSError as error:  # a file server that was away for a moment
                logger.warning("progress cannot be read: %s", error)
