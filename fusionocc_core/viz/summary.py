"""The table at the end of a run: frames in and out, latencies, voxels of each class."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from rich.console import Group
from rich.table import Table
from rich.text import Text

from fusionocc_core.grids import LabelSet
from fusionocc_core.structures import UNTRAINED, Occupancy
from fusionocc_core.viz.overview import class_counts


@dataclass(kw_only=True)
class Summary:
    """Grows by one frame at a time."""

    frames_in: int = 0
    """What was to be predicted."""
    frames_out: int = 0
    """What was predicted."""
    frames_earlier: int = 0
    """Of those: predicted by an earlier run and read back."""
    skipped: list[str] = field(default_factory=list)
    """Frames that could not be predicted, each with the reason."""
    latencies_s: list[float] = field(default_factory=list)
    frames_a_second: float | None = None
    """How many were predicted in a second, one after the other; None where nobody has measured it."""
    label_set: LabelSet | None = None
    counts: NDArray[np.int64] | None = None
    """Voxels of each class over all frames."""
    model: str = ""
    trained_on: str = ""

    def add(self, occupancy: Occupancy, latency_s: float | None = None, *, earlier: bool = False) -> None:
        """Count one more frame.

        Args:
            occupancy: what was answered.
            latency_s: how long that took.
            earlier: it was read back, from an earlier run.

        Raises:
            ValueError: its label set is another than that of the frames before.
        """
        if self.label_set is not None and self.label_set != occupancy.label_set:
            raise ValueError(f"label set {occupancy.label_set.name!r}: the frames before had {self.label_set.name!r}")
        counts = class_counts(occupancy)
        self.counts = counts if self.counts is None else self.counts + counts
        self.label_set, self.model, self.trained_on = occupancy.label_set, occupancy.model, occupancy.trained_on
        self.frames_out += 1
        self.frames_earlier += earlier
        if latency_s is not None:
            self.latencies_s.append(latency_s)

    def latency(self, percentile: float) -> float:
        """Seconds within which ``percentile`` percent of the frames were done.

        Raises:
            ValueError: no latency was recorded.
        """
        if not self.latencies_s:
            raise ValueError("Summary.latency: no frame with a latency was added")
        return float(np.percentile(self.latencies_s, percentile))

    def render(self, latency_name: str = "latency") -> Group:
        """Two tables for a rich console: the run, and the classes that occur with their voxels a frame."""
        run = Table(show_header=False)
        run.add_column()
        run.add_column(justify="right")
        run.add_row("model", Text(self.model or "-"))
        trained = Text(self.trained_on or "not said", style="bold red" if self.trained_on == UNTRAINED else "")
        run.add_row("weights", trained)
        run.add_row("frames in", f"{self.frames_in}")
        run.add_row("frames out", f"{self.frames_out}")
        if self.frames_earlier:
            run.add_row("of these from an earlier run", f"{self.frames_earlier} (--overwrite predicts anew)")
        if self.skipped:
            run.add_row("skipped", Text(f"{len(self.skipped)}", style="bold red"))
        if self.latencies_s:
            run.add_row(f"{latency_name} p50", f"{self.latency(50) * 1e3:.0f} ms")
            run.add_row(f"{latency_name} p95", f"{self.latency(95) * 1e3:.0f} ms")
        if self.frames_a_second is not None:
            run.add_row("keyframes a second", f"{self.frames_a_second:.1f}")
        return Group(run, self._classes())

    def _classes(self) -> Table:
        table = Table()
        table.add_column("class")
        table.add_column("voxels", justify="right")
        table.add_column("a frame", justify="right")
        if self.label_set is None or self.counts is None:
            return table
        for i in np.argsort(-self.counts, kind="stable").tolist():
            if self.counts[i] == 0:
                continue
            name = Text("\u2588 ", style="rgb({},{},{})".format(*self.label_set.colors[i]))
            name.append(self.label_set.names[i], style="default")
            table.add_row(name, f"{self.counts[i]:,}", f"{self.counts[i] / self.frames_out:,.0f}")
        return table
