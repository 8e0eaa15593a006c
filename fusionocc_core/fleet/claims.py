"""Who works on which unit: claims in a folder that all workers see, given up by silence.

A claim is a file ``UNIT/N`` that is made by a hard link, which only one can make; the highest N counts. Its owner
rewrites it every few seconds. A worker takes a unit over, as N + 1, when the owner has given it back, when it is known
to be dead (same machine), or when the file has not changed for ``lease_s`` seconds on the worker's own clock: clocks of
different machines are never compared.

Claims save work and decide nothing: should a worker that was thought dead go on, its results are not taken twice
(``store.Store.publish``).
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from dataclasses import asdict
from pathlib import Path

from fusionocc_core.fleet.background import NowAndThen
from fusionocc_core.fleet.owner import Owner, this_process

logger = logging.getLogger(__name__)

LEASE_S = 60.0
"""Silence after which a worker on another machine counts as dead. NFS may show files as they were some seconds ago."""

BEATS_A_LEASE = 12


class Claims:
    """The claims of a folder, as one worker sees them.

    Args:
        folder: which all workers share; made if absent.
        lease_s: seconds of silence after which a claim is given up.

    Raises:
        ValueError: a lease that is no time.
    """

    def __init__(self, folder: Path, *, lease_s: float = LEASE_S) -> None:
        if not lease_s > 0:
            raise ValueError(f"--lease {lease_s}: expected seconds, more than none")
        self.folder, self.lease_s = folder, lease_s
        self.owner = this_process()
        self._seen: dict[str, tuple[str, float]] = {}

    def take(self, unit: str) -> Claim | None:
        """Claim a unit; None where somebody else has it."""
        folder = self.folder / unit
        folder.mkdir(parents=True, exist_ok=True)
        newest = newest_claim(folder)
        if newest and not self._is_given_up(unit, folder / str(newest)):
            return None
        claim = Claim(folder, newest + 1, self.owner)
        return claim if claim.make() else None

    def _is_given_up(self, unit: str, path: Path) -> bool:
        text = path.read_text()
        claim = json.loads(text)
        if claim["released"]:
            return True
        owner = Owner(**claim["owner"])
        if owner.is_known_to_be_dead():
            logger.warning("%s died while it worked on %s: taken over", owner, unit)
            return True
        now = time.monotonic()
        seen, since = self._seen.get(unit, ("", now))
        if seen != text:
            self._seen[unit] = (text, now)
            return False
        if now - since < self.lease_s:
            return False
        logger.warning("%s, which works on %s, has been silent for %.0f s: taken over", owner, unit, now - since)
        return True

    def keyframes_in_work(self, units: set[str]) -> int:
        """Keyframes that the owners of these units say to have done of them."""
        taken = units.intersection(os.listdir(self.folder)) if self.folder.is_dir() else set()
        done = 0
        for unit in taken:
            folder = self.folder / unit
            newest = newest_claim(folder)
            done += json.loads((folder / str(newest)).read_text())["keyframes"] if newest else 0
        return done


class Claim:
    """A unit that this process has; made by ``Claims.take``."""

    def __init__(self, folder: Path, number: int, owner: Owner) -> None:
        self.folder, self.number, self.owner = folder, number, owner
        self._path = folder / str(number)
        self._beats = 0

    def make(self) -> bool:
        """Make the file; False where another was quicker."""
        partial = self._write(keyframes=0, released=False)
        try:
            os.link(partial, self._path)
        except FileExistsError:
            return False
        finally:
            partial.unlink()
        return True

    def beat(self, keyframes: int) -> None:
        """Say that the owner lives, and how many keyframes of the unit are done."""
        self._write(keyframes=keyframes, released=False).replace(self._path)

    def release(self) -> None:
        """Give the unit back, for others to take at once."""
        self._write(keyframes=0, released=True).replace(self._path)

    def is_newest(self) -> bool:
        """Whether nobody has taken the unit over meanwhile."""
        return newest_claim(self.folder) == self.number

    def _write(self, *, keyframes: int, released: bool) -> Path:
        self._beats += 1
        content = {"owner": asdict(self.owner), "beat": self._beats, "keyframes": keyframes, "released": released}
        partial = self.folder / f".{self.owner.key}-{threading.get_ident()}"
        partial.write_text(json.dumps(content))
        return partial


def newest_claim(folder: Path) -> int:
    """The number of the claim that counts; 0 where there is none."""
    return max((int(name) for name in os.listdir(folder) if name.isdecimal()), default=0)


class Heartbeat(NowAndThen):
    """Inside the block a thread keeps a claim alive; ``keyframes`` says how far the work is."""

    def __init__(self, claim: Claim, *, lease_s: float) -> None:
        # A sign that cannot be given is no error yet; after too many the unit is taken over.
        super().__init__(lease_s / BEATS_A_LEASE, what=f"no sign of life on {claim.folder.name}")
        self.keyframes = 0
        self._claim = claim

    def act(self) -> None:
        """Beat."""
        self._claim.beat(self.keyframes)
