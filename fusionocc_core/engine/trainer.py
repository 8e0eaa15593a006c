"""The training loop: one class, read from ``fit`` downwards.

A step takes ``batch.total`` samples over all processes, in as many forward passes as that needs. Everything that a run
is made of stands in one checkpoint; a run that is started again goes on from the newest, bit by bit as if nothing had
happened.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fusionocc_core.engine.distributed import World
from fusionocc_core.engine.ema import Ema, EmaConfig
from fusionocc_core.engine.examples import Examples, ExampleSource, change_tensors, load_examples
from fusionocc_core.engine.failures import SeenLoss, report_failure
from fusionocc_core.engine.network import freeze_batch_norms, replicate
from fusionocc_core.engine.optimizer import OptimizerConfig, make_optimizer
from fusionocc_core.engine.recorder import Recorder
from fusionocc_core.engine.rng import rng_state, seed_everything, set_rng_state
from fusionocc_core.engine.run_folder import CheckpointConfig
from fusionocc_core.engine.sampler import BatchConfig, SampleStream, draw_seed
from fusionocc_core.engine.schedule import ScheduleConfig, rate_factor
from fusionocc_core.engine.stopping import StopRequest
from fusionocc_core.engine.teacher import LossTerms, Teacher, TeacherConfig

logger = logging.getLogger(__name__)

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Names of TrainConfig.precision, and what autocast computes in."""

MOST_SKIPPED = 30
"""Steps in a row that the fp16 loss scaler may skip before the run is given up: the scale has fallen by 2**30."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a network is trained; the defaults are the official FusionOcc recipe on any number of GPUs."""

    epochs: float = 24
    """Passes over the data; a fraction of one is possible."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    ema: EmaConfig | None = field(default_factory=EmaConfig)
    teacher: TeacherConfig | None = None
    """Keyframes without labels are taught by the averaged network; needs ``ema``."""
    precision: str = "fp32"
    """"fp32", "bf16", or "fp16" (with a loss scaler)."""
    sync_batch_norm: bool = True
    """Batch statistics over all processes; takes effect with more than one CUDA process."""
    freeze_batch_norm: bool = False
    """Batch norms keep the statistics that they came with: for small batches on top of trained weights."""
    seed: int = 0
    deterministic: bool = False
    """Refuse CUDA kernels whose sums depend on timing; slower. On a CPU runs repeat without it."""
    workers: int = 4
    """Processes a training process that read and prepare samples; 0 does it in between."""
    log_every: int = 10
    """Steps between lines of the log."""
    evaluate_every: int = 1
    """Epochs between evaluations; there is one at the end in any case."""
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        """Refuse values that the loop does not know."""
        if self.precision not in PRECISIONS:
            raise ValueError(f"TrainConfig.precision={self.precision!r}: expected one of {tuple(PRECISIONS)}")
        if self.teacher and self.ema is None:
            raise ValueError("TrainConfig.teacher: the teacher is the averaged network, but ema is None")
        if self.epochs <= 0 or min(self.log_every, self.evaluate_every) < 1 or self.workers < 0:
            raise ValueError(
                f"TrainConfig: epochs={self.epochs} must be positive, log_every={self.log_every} and "
                f"evaluate_every={self.evaluate_every} at least 1, workers={self.workers} not negative"
            )


class Trainer:
    """Trains one network in this process, together with the other processes of ``world``.

    Args:
        config: how.
        model: the network; forward(batch) -> a dataclass of outputs. Moved to the world's device.
        loss: (outputs, targets) -> total and named terms; computed in float32.
        source: the samples.
        world: the processes.
        recorder: logs and files; its methods do nothing where this is not the main process.
        evaluate: network -> named metrics, called in every process with the averaged weights in place.
        teacher: given the averages, what teaches samples without labels.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        model: nn.Module,
        loss: Callable[[Any, Any], LossTerms],
        source: ExampleSource,
        world: World,
        recorder: Recorder,
        evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
        teacher: Callable[[Ema], Teacher] | None = None,
    ) -> None:
        self.config, self.loss, self.world, self.recorder, self.evaluate = config, loss, world, recorder, evaluate
        self.source = source
        self.stream = SampleStream(
            length=len(source),
            epochs=config.epochs,
            batch=config.batch,
            seed=config.seed,
            rank=world.sample_rank,
            processes=world.size,
        )
        seed_everything(draw_seed(config.seed, world.rank, 1))
        _choose_kernels(config)
        self.model = model.to(world.device)
        self.replica = replicate(self.model, world, config.sync_batch_norm)
        self.optimizer = make_optimizer(config.optimizer, self.model)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=config.precision == "fp16")
        self.ema = Ema(config.ema, self.model) if config.ema else None
        self.teacher = teacher(self.ema) if teacher and self.ema else None
        self.step = 0
        """Optimizer steps done."""
        self.skipped = 0
        """Steps in a row that the loss scaler skipped."""
        self.recorder.check_space(self.model, averages=self.ema is not None)
        self._resume()

    def fit(self) -> int:
        """Train to the end, or until SIGINT or SIGTERM.

        Returns:
            0, or the number of the signal after which a checkpoint was written and the training stopped.

        Raises:
            LossFailure: the loss or the gradients are not finite.
            OSError: a checkpoint cannot be written.
        """
        self._train_mode()
        with StopRequest() as stop, self.recorder.live(self.step, self.stream.steps):
            began = time.perf_counter()
            for examples in self._examples():
                loaded = time.perf_counter()
                told = self._optimizer_step(examples, stop.signal_number)
                self.step += 1
                now = time.perf_counter()
                self.recorder.step(
                    self.step, told, seconds=now - began, waited=loaded - began, samples=self.config.batch.total
                )
                finished = self.step == self.stream.steps
                if self.evaluate and (finished or self._crossed(self.config.evaluate_every)):
                    self._evaluate()
                    self._save()
                elif finished or told["stop"] or self.step % self.config.checkpoints.every_steps == 0:
                    self._save()
                if told["stop"] and not finished:
                    return int(told["stop"])
                began = time.perf_counter()
        self.recorder.finish(self._weights_to_use, self.model)
        return 0

    @property
    def epoch(self) -> float:
        """Passes over the data done."""
        return self.step * self.config.batch.total / self.stream.length

    def _examples(self) -> Any:
        return load_examples(
            self.source,
            self.stream,
            first_step=self.step,
            workers=self.config.workers,
            pin_memory=self.world.device.type == "cuda",
        )

    def _crossed(self, epochs: int) -> bool:
        """Whether the step just done was the first to reach a multiple of ``epochs`` passes over the data."""
        samples = epochs * self.stream.length
        done = self.step * self.config.batch.total
        return done // samples > (done - self.config.batch.total) // samples

    def _optimizer_step(self, examples: list[Examples], stop: int) -> dict[str, float]:
        rate = self._set_rate()
        self.optimizer.zero_grad(set_to_none=True)
        seen = []
        for number, some in enumerate(examples):
            with self._gradients_shared(number == len(examples) - 1):
                losses = self._forward(some.to(self.world.device))
                self.scaler.scale(losses.total / len(examples)).backward()
            terms = {"loss": losses.total, **losses.terms}
            detached = {name: value.detach() for name, value in terms.items()}
            seen.append(SeenLoss(tokens=some.tokens, terms=detached))
        told = self._agree(seen, stop)
        if not math.isfinite(told["loss"]) and not self.scaler.is_enabled():
            raise self._failure("the loss is not finite", seen)
        told["grad_norm"] = self._update(seen)
        return {**told, "lr": rate, "epoch": (self.step + 1) * self.config.batch.total / self.stream.length}

    def _forward(self, examples: Examples) -> LossTerms:
        dtype = PRECISIONS[self.config.precision]
        with torch.autocast(self.world.device.type, dtype=dtype, enabled=dtype is not None):
            outputs = self.replica(examples.batch)
            labels = self.teacher.labels(examples.unlabelled, self.epoch) if self.teacher else None
        outputs = change_tensors(outputs, _to_float32)
        losses = self.loss(outputs, examples.targets)
        if self.teacher is None:
            return losses
        return self.teacher.joined(losses, outputs, examples.unlabelled, labels, self.epoch)

    def _update(self, seen: list[SeenLoss]) -> float:
        """Clip, take the step, average. Returns the norm of the gradients before clipping."""
        self.scaler.unscale_(self.optimizer)
        largest = self.config.optimizer.clip_norm or math.inf
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), largest))
        if not self.scaler.is_enabled() and not math.isfinite(norm):
            raise self._failure("the gradients are not finite", seen)
        self.skipped = 0 if math.isfinite(norm) else self.skipped + 1
        if self.skipped > MOST_SKIPPED:
            raise self._failure(f"{self.skipped} steps in a row overflowed in fp16", seen)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema:
            self.ema.update(self.model)
        return norm

    def _set_rate(self) -> float:
        factor = rate_factor(self.config.schedule, step=self.step, epoch=self.epoch, epochs=self.config.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.optimizer.lr * factor * group.get("share", 1.0)  # older checkpoints have none
        return self.config.optimizer.lr * factor

    def _gradients_shared(self, shared: bool) -> AbstractContextManager[None]:
        """Only the last backward pass of a step sends gradients to the other processes."""
        if shared or self.replica is self.model:
            return nullcontext()
        no_sync: AbstractContextManager[None] = self.replica.no_sync()  # type: ignore[operator]
        return no_sync

    def _agree(self, seen: list[SeenLoss], stop: int) -> dict[str, float]:
        """Mean loss terms over all processes, and whether any was asked to stop: one exchange a step."""
        names = list(seen[0].terms)
        means = [torch.stack([one.terms[name].double() for one in seen]).mean() for name in names]
        vector = torch.stack([*means, torch.tensor(float(stop), device=self.world.device, dtype=torch.float64)])
        *values, signal = self.world.total(vector).tolist()
        return {**{name: value / self.world.size for name, value in zip(names, values, strict=True)}, "stop": signal}

    def _failure(self, what: str, seen: list[SeenLoss]) -> Exception:
        details = {"epoch": self.epoch, "seed": self.config.seed, "lr": self.optimizer.param_groups[0]["lr"]}
        out = self.recorder.out
        return report_failure(out, what=what, step=self.step, rank=self.world.rank, seen=seen, details=details)

    def _train_mode(self) -> None:
        self.replica.train()
        if self.config.freeze_batch_norm:
            freeze_batch_norms(self.model)

    def _weights_to_use(self) -> AbstractContextManager[None]:
        return self.ema.applied_to(self.model) if self.ema else nullcontext()

    def _evaluate(self) -> None:
        """Measure the averaged weights; leaves weights, mode and random generators as they were."""
        assert self.evaluate is not None
        random = rng_state()
        with self._weights_to_use():
            self.world.share_buffers(self.model)
            self.model.eval()
            with torch.no_grad():
                metrics = self.evaluate(self.model)
            self.recorder.evaluation(self.step, self.epoch, metrics, self.model)
        self._train_mode()
        set_rng_state(random)

    def _save(self) -> None:
        """Write a checkpoint; every process gives its random state."""
        random = self.world.gather(rng_state())
        state = {
            "step": self.step,
            "skipped": self.skipped,
            "processes": self.world.size,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "random": random,
        }
        self.recorder.checkpoint(self.step, state)

    def _resume(self) -> None:
        """Go on from the newest checkpoint where there is one."""
        state = self.recorder.resume(self.world)
        if state is None:
            return
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        self.step, self.skipped = int(state["step"]), int(state["skipped"])
        if state["processes"] == self.world.size:
            set_rng_state(state["random"][self.world.rank])
        else:
            seed_everything(draw_seed(self.config.seed, self.world.rank, 2 + self.step))
            logger.warning(
                "the run was saved by %d processes and goes on with %d: the same samples in the same steps, but random "
                "draws inside the network differ from an uninterrupted run",
                state["processes"],
                self.world.size,
            )


def _choose_kernels(config: TrainConfig) -> None:
    torch.use_deterministic_algorithms(config.deterministic)
    torch.backends.cudnn.benchmark = not config.deterministic


def _to_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
