"""Everything that a run writes and tells; silent in all processes but the main one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from fusionocc_core.engine.distributed import World
from fusionocc_core.engine.reporting import JsonLines, ProgressLine, TensorBoard, memory
from fusionocc_core.engine.run_folder import CheckpointConfig, RunFolder, check_space, load_checkpoint

Export = Callable[[nn.Module, Path, Mapping[str, float]], None]
"""Writes a network's weights, with the metrics that they reached, to a file."""


class Recorder:
    """Logs, checkpoints and the live line of one run.

    Args:
        out: the run's folder.
        world: the processes.
        checkpoints: how often to save and what to keep.
        log_every: steps between lines of the log.
        best_metric: name of the metric by which the best checkpoint is chosen (more is better).
        export: writes weights for use; None writes none.
        run: what the run is (recipe, command); kept in run.json and in every checkpoint.
        check_resume: given ``run`` of an earlier call in this folder; raises if they cannot be one run.
        tensorboard: also write curves for TensorBoard.
        console: where to tell; the standard output by default.

    Raises:
        ValueError: another process is training into the folder.
        OSError: the folder cannot be written.
        ModuleNotFoundError: TensorBoard was asked for and is not installed.
    """

    def __init__(
        self,
        out: Path,
        *,
        world: World,
        checkpoints: CheckpointConfig,
        log_every: int,
        best_metric: str = "",
        export: Export | None = None,
        run: Mapping[str, Any] | None = None,
        check_resume: Callable[[Mapping[str, Any]], None] | None = None,
        tensorboard: bool = False,
        console: Console | None = None,
    ) -> None:
        self.out, self.is_main, self.config = out, world.is_main, checkpoints
        self.log_every, self.best_metric, self.export, self.run = log_every, best_metric, export, dict(run or {})
        self._check_resume = check_resume
        self.best: dict[str, float] = {}
        """The best value of ``best_metric`` so far and its step, or empty."""
        self.console = console or Console()
        self.folder = RunFolder(out) if self.is_main else None
        self.log = JsonLines(out / "log.jsonl")
        self._wants_curves = tensorboard
        self._evaluated, self.processes = 0, world.size
        self._curves: TensorBoard | None = None
        self._line: ProgressLine | None = None

    def close(self) -> None:
        """Free the folder for another process."""
        if self._curves:
            self._curves.close()
        if self.folder:
            self.folder.close()

    @contextmanager
    def live(self, step: int, steps: int) -> Iterator[None]:
        """Show progress inside the block."""
        if not self.is_main:
            yield
            return
        if self._wants_curves and self._curves is None:
            self._curves = TensorBoard(self.out / "tensorboard", first_step=step)
        self._line = ProgressLine(steps=steps, done=step, console=self.console)
        self._line.start()
        try:
            yield
        finally:
            self._line.stop()
            self._line = None

    def say(self, text: str) -> None:
        """Print a line that stays."""
        if self._line:
            self._line.say(text)
        elif self.is_main:
            self.console.print(text, highlight=False, soft_wrap=True)

    def step(self, step: int, told: Mapping[str, float], *, seconds: float, waited: float, samples: int) -> None:
        """Tell of an optimizer step: its loss terms, rate of learning, norm of gradients, and times."""
        if not self.is_main:
            return
        if self._line:
            self._line.step(step, epoch=told["epoch"], loss=told["loss"], seconds=seconds, samples=samples)
        if step % self.log_every == 0 or step == 1:
            values = {name: value for name, value in told.items() if name != "stop"}
            timing = {"step_s": seconds, "waited_for_data_s": waited, **memory()}
            self.log.append({"kind": "train", "step": step, **values, **timing, "time": time.time()})
            if self._curves:
                self._curves.add(step, {f"train/{name}": value for name, value in {**values, **timing}.items()})

    def evaluating(self, frames: int) -> None:
        """Tell of one more frame that an evaluation of ``frames`` in all has done in this process."""
        self._evaluated += 1
        if self._line:
            self._line.note(f"evaluating: {self._evaluated} of about {-(-frames // self.processes)} keyframes")

    def evaluation(self, step: int, epoch: float, metrics: Mapping[str, float], model: nn.Module) -> None:
        """Tell of an evaluation; the weights become best.safetensors if no earlier ones were better."""
        self._evaluated = 0
        value = metrics.get(self.best_metric)
        is_best = value is not None and value > self.best.get("value", float("-inf"))
        if is_best:
            assert value is not None
            self.best = {"value": float(value), "step": float(step)}
        if not self.is_main:
            return
        if is_best and self.export:
            self.export(model, self.out / "best.safetensors", metrics)
        self.log.append({"kind": "evaluation", "step": step, "epoch": epoch, **metrics, "time": time.time()})
        if self._curves:
            self._curves.add(step, {f"evaluation/{name}": number for name, number in metrics.items()})
        told = "  ".join(f"{name} {number:.4g}" for name, number in metrics.items())
        self.say(f"epoch {epoch:.2f}  {told}{'  (best)' if is_best else ''}")

    def checkpoint(self, step: int, state: Mapping[str, Any]) -> None:
        """Write a checkpoint, then remove those that need not be kept.

        Raises:
            OSError: it cannot be written; earlier ones are untouched.
        """
        if self.folder:
            self.folder.save(step, {**state, "run": self.run, "best": self.best})
            self.folder.prune(self.config.keep, int(self.best["step"]) if self.best else None)

    def resume(self, world: World) -> dict[str, Any] | None:
        """The newest checkpoint, or None; the log is cut to it. Every process must call it.

        All read the same file; where one does not see it, on a machine that does not share the folder, it is sent.

        Raises:
            ValueError: the checkpoint is damaged, or of another recipe.
        """
        newest = world.gather(self.folder.steps()[-1:] if self.folder else [])[0]
        if not newest:
            if self.folder:
                self.log.path.unlink(missing_ok=True)
                self.folder.write_json("run.json", self.run)
            return None
        path = self.out / "checkpoints" / f"step-{newest[0]:08d}.pt"
        if all(world.gather(path.is_file())):
            state = load_checkpoint(path)
        else:
            state = world.from_main(load_checkpoint(path) if self.folder else None)
        if self._check_resume:
            self._check_resume(state["run"])
        self.best = dict(state["best"])
        if self.folder:
            self.log.cut_after(newest[0])
            self.say(f"going on from step {newest[0]} in {self.out}")
        return state

    def finish(self, weights_to_use: Callable[[], AbstractContextManager[None]], model: nn.Module) -> None:
        """Write the last weights for use."""
        if self.is_main and self.export:
            with weights_to_use():
                self.export(model, self.out / "last.safetensors", {})

    def check_space(self, model: nn.Module, *, averages: bool) -> None:
        """Say before the training starts that its checkpoints will not fit on the disk.

        Raises:
            OSError: they will not.
        """
        if self.folder is None:
            return
        weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
        one = weights * (4 if averages else 3)  # the network, two moments, the averages
        kept = self.config.keep + 2  # and the best, and the one being written
        check_space(self.out, one * max(1, kept - len(self.folder.steps())) + 2 * weights)
