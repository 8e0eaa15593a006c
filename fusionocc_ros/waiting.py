"""What the node waits for after its start, in words, until the first result is out."""

from __future__ import annotations

import time
from collections.abc import Callable


class StartUp:
    """Says what is still missing whenever that has changed, and when the first result was published.

    Args:
        say: writes a line to the log.
        clock: seconds that never run backwards.
    """

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._clock = say, clock
        self._began_s = clock()
        self._said: tuple[str, ...] | None = None
        self.done = False

    def look(self, missing: tuple[str, ...], *, published: bool) -> None:
        """Take a look.

        Args:
            missing: what is still waited for, a phrase each.
            published: whether a result has been published since the start.
        """
        if self.done:
            return
        if published:
            self.done = True
            self._say(f"first occupancy after {self._clock() - self._began_s:.1f} s")
        elif missing != self._said:
            self._said = missing
            self._say(f"waiting for {'; '.join(missing)}" if missing else "everything is there: waiting for a result")


def missing_inputs(
    *,
    unheard: tuple[str, ...],
    topics: dict[str, str],
    publishers: Callable[[str], int],
    no_info: tuple[str, ...],
    no_place: tuple[str, ...],
    base_frame: str,
) -> tuple[str, ...]:
    """A phrase for each thing that the node waits for.

    Args:
        unheard: sensors that have sent nothing.
        topics: of each sensor.
        publishers: how many publish on a topic.
        no_info: cameras without calibration.
        no_place: frames whose transform to ``base_frame`` is not known.
        base_frame: of the vehicle.
    """
    out = []
    for sensor in unheard:
        count = publishers(topics[sensor])
        who = "nobody publishes it" if count == 0 else f"{count} publisher{'s' if count > 1 else ''}, no message yet"
        out.append(f"{sensor} on {topics[sensor]} ({who})")
    out += [f"CameraInfo of {camera}" for camera in no_info]
    if no_place:
        out.append(f"transforms to {base_frame} from {', '.join(no_place)}")
    return tuple(out)
