"""A network, data and loss small enough for hundreds of steps a second, run through the real loop."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from fusionocc_core.engine.distributed import World
from fusionocc_core.engine.ema import EmaConfig
from fusionocc_core.engine.examples import Examples
from fusionocc_core.engine.optimizer import OptimizerConfig
from fusionocc_core.engine.recorder import Recorder
from fusionocc_core.engine.run_folder import CheckpointConfig
from fusionocc_core.engine.sampler import BatchConfig, draw_seed
from fusionocc_core.engine.schedule import ScheduleConfig
from fusionocc_core.engine.trainer import TrainConfig, Trainer

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class ToyBatch:
    input_BC: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class ToyOutputs:
    score_B: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class ToyLoss:
    total: torch.Tensor
    terms: dict[str, torch.Tensor]


class ToyNet(nn.Module):
    """Batch norm, dropout and a buffer: everything that a checkpoint could forget. ``ballast`` makes files large."""

    def __init__(self, ballast: int = 0, dropout: float = 0.2) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 1)
        )
        self.register_buffer("ballast", torch.zeros(ballast))

    def forward(self, batch: ToyBatch) -> ToyOutputs:
        return ToyOutputs(score_B=self.body(batch.input_BC)[:, 0])


def toy_loss(outputs: ToyOutputs, truth_B: torch.Tensor) -> ToyLoss:
    square = (outputs.score_B - truth_B).square().mean()
    absolute = (outputs.score_B - truth_B).abs().mean()
    return ToyLoss(total=square + 0.1 * absolute, terms={"square": square, "absolute": absolute})


@dataclass(frozen=True)
class ToySource:
    """Inputs are drawn from the key, as augmentations are."""

    length: int = 10
    broken: frozenset[int] = field(default_factory=frozenset)
    """Samples whose truth is not a number."""
    pause: float = 0.0

    def __len__(self) -> int:
        return self.length

    def examples(self, keys):
        time.sleep(self.pause)
        inputs, truths = [], []
        for key in keys:
            generator = torch.Generator().manual_seed(draw_seed(7, *key))
            x = torch.randn(4, 8, generator=generator)  # four rows a sample, so that batch norm has a batch
            inputs.append(x)
            truths.append(x.sum(dim=1) * (float("nan") if key.sample in self.broken else 1.0))
        return Examples(
            batch=ToyBatch(input_BC=torch.cat(inputs)),
            targets=torch.cat(truths),
            tokens=tuple(f"token-{key.sample}" for key in keys),
        )


TOY_CONFIG = TrainConfig(
    epochs=4,
    batch=BatchConfig(total=2, per_process=1),
    optimizer=OptimizerConfig(lr=1e-2),
    schedule=ScheduleConfig(warmup_steps=5),
    ema=EmaConfig(initial_updates=0, ramp=5.0),
    workers=0,
    log_every=1,
    checkpoints=CheckpointConfig(every_steps=3, keep=2),
)


def make_trainer(
    out: Path,
    config: TrainConfig = TOY_CONFIG,
    *,
    world: World | None = None,
    source: ToySource | None = None,
    ballast: int = 0,
    dropout: float = 0.2,
    evaluate=None,
    console: Console | None = None,
    **recorder_options,
) -> Trainer:
    world = world or World(device=CPU)
    recorder = Recorder(
        out,
        world=world,
        checkpoints=config.checkpoints,
        log_every=config.log_every,
        console=console or Console(file=StringIO()),
        **recorder_options,
    )
    torch.manual_seed(3)  # the same fresh weights in every process
    return Trainer(
        config,
        model=ToyNet(ballast, dropout),
        loss=toy_loss,
        source=ToySource() if source is None else source,
        world=world,
        recorder=recorder,
        evaluate=evaluate,
    )


def train_toy(out: Path, config: TrainConfig = TOY_CONFIG, **options) -> Trainer:
    trainer = make_trainer(out, config, **options)
    trainer.fit()
    trainer.recorder.close()
    return trainer


def train_in_a_process(rank: int, size: int, out: str, config: TrainConfig, options: dict) -> None:
    """Entry point of processes that tests start; ``size`` of them find each other through a file."""
    torch.set_num_threads(1)
    world = World(device=CPU, rank=rank, size=size)
    if size > 1:
        store = f"file://{os.path.abspath(out)}.rendezvous"
        torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
    train_toy(Path(out), config, world=world, **options)
    if size > 1:
        torch.distributed.destroy_process_group()


def evaluate_toy(model: nn.Module) -> dict[str, float]:
    """A metric that draws random numbers, which must not reach the training."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 8, generator=generator)
    torch.rand(17)
    error = (model(ToyBatch(input_BC=x)).score_B - x.sum(dim=1)).square().mean()
    return {"quality": -error.item()}


def variant(**changes) -> TrainConfig:
    return replace(TOY_CONFIG, **changes)
