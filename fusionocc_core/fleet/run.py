"""Before and after the workers, whichever engine runs them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from fusionocc_core.fleet.manifest import write_manifest
from fusionocc_core.fleet.store import KeyframeRecord, Store
from fusionocc_core.fleet.worker import Job
from fusionocc_core.viz.export import remove_results, results_in


def prepare(job: Job, *, overwrite: bool = False) -> int:
    """Make the output folder ready: by one process, before any worker of the run begins.

    Units of which a keyframe failed or a file is gone are opened again; the results that they have stay.

    Args:
        job: what is to be done.
        overwrite: take away all results and records first. No other run may be at work in the folder.

    Returns:
        Units that are done already.

    Raises:
        OSError: the folder cannot be written, or its file system has no hard links.
    """
    store = Store(job.out)
    if overwrite:
        store.forget()
        for data in job.data:
            for scene in {path.parent for path in results_in(job.out / data.name)}:
                remove_results(scene)
    store.check_links()
    store.tidy()
    done = store.done() & {unit.name for unit in job.units}
    broken = [name for name in done if not store.is_whole(store.record(name))]
    for name in broken:
        store.reopen(name)
    return len(done) - len(broken)


@dataclass(frozen=True, kw_only=True)
class FleetSummary:
    """What became of a job."""

    keyframes: Sequence[KeyframeRecord]
    units: int
    seconds: float | None = None
    """How long this run took, its start included."""
    done_before: int = 0
    """Keyframes that an earlier run had done."""

    @property
    def failed(self) -> list[KeyframeRecord]:
        """Keyframes without results."""
        return [keyframe for keyframe in self.keyframes if keyframe.error]

    def render(self) -> Table:
        """A table for a rich console."""
        files = Counter(file.path.rpartition(".")[2] for keyframe in self.keyframes for file in keyframe.files)
        size = sum(file.bytes for keyframe in self.keyframes for file in keyframe.files)
        table = Table(show_header=False)
        table.add_column()
        table.add_column(justify="right")
        table.add_row("data sets", f"{len({keyframe.data for keyframe in self.keyframes})}")
        table.add_row("units", f"{self.units}")
        table.add_row("keyframes", f"{len(self.keyframes)}")
        if self.done_before:
            table.add_row("of these from an earlier run", f"{self.done_before} (--overwrite predicts anew)")
        if self.failed:
            table.add_row("failed", Text(f"{len(self.failed)}", style="bold red"))
        table.add_row("files", ", ".join(f"{count} .{kind}" for kind, count in sorted(files.items())) or "none")
        table.add_row("size", f"{size / 1e6:.1f} MB")
        fresh = len(self.keyframes) - self.done_before
        if self.seconds and fresh:
            table.add_row("keyframes a second, start included", f"{fresh / self.seconds:.2f}")
        return table


def finish(job: Job, *, seconds: float | None = None, done_before: int = 0) -> FleetSummary:
    """See that everything is done and write the manifest: by one process, after the workers.

    Raises:
        ValueError: something is missing.
    """
    store = Store(job.out)
    keyframes = write_manifest(store, job.data, job.units)
    store.tidy()
    return FleetSummary(keyframes=keyframes, units=len(job.units), seconds=seconds, done_before=done_before)
