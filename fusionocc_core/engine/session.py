"""From a recipe and a folder of data to a trainer that is ready to run."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors import SafetensorError

from fusionocc_core.checkpoints import (
    ModelCard,
    encode_config,
    is_model_file,
    load_strictly,
    read_model,
    read_official,
    save_model,
)
from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_core.data.remembered import history_of
from fusionocc_core.engine.distributed import World
from fusionocc_core.engine.ema import Ema
from fusionocc_core.engine.evaluation import LabelledFrames, evaluate, summary
from fusionocc_core.engine.occupancy_examples import OccupancyExamples
from fusionocc_core.engine.recipe import Recipe, check_same_recipe, taking_measured_depth
from fusionocc_core.engine.recorder import Export, Recorder
from fusionocc_core.engine.rng import seed_everything
from fusionocc_core.engine.run_folder import publish
from fusionocc_core.engine.teacher import Teacher, taught_terms
from fusionocc_core.engine.trainer import Trainer
from fusionocc_core.losses import Losses, Targets, compute_losses
from fusionocc_core.models.network import NetworkConfig, OccupancyNetwork
from fusionocc_core.models.renderocc import RenderOccConfig
from fusionocc_core.presets import make_network
from fusionocc_core.structures import UNTRAINED, InputConfig, Outputs

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a run's weights begin."""

    weights: Path | None = None
    """A file of ours or an official one; None: fresh weights."""
    matching_only: bool = False
    """Take the tensors whose names and shapes fit, and leave the others fresh: for weights of a related network."""


def fresh_network(recipe: Recipe) -> OccupancyNetwork:
    """The recipe's network as it is trained, with fresh weights, the same for the same seed."""
    seed_everything(recipe.train.seed)
    model = make_network(recipe.trained_model)
    model.card = ModelCard(preset=recipe.preset, trained_on=UNTRAINED)
    return model


def as_used(network: Any, config: NetworkConfig) -> Any:
    """A network as it is evaluated and exported: itself, or where its config differs in training, one of its weights.

    The other shares the tensors; its mode is the same.
    """
    if network.config == config:
        return network
    used = make_network(config).to(next(network.parameters()).device)  # for what no state holds
    used.load_state_dict(network.state_dict(), assign=True)
    used.card = network.card
    return used.train(network.training)


def load_start(model: OccupancyNetwork, start: Start) -> str:
    """Copy the weights that a run begins with; gives a sentence about what was taken.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the tensors do not fit, or, with ``matching_only``, none does.
    """
    if start.weights is None:
        return "fresh weights"
    path = start.weights
    state = read_model(path).state if is_model_file(path) else model.state_from_official(read_official(path)[0])
    if not start.matching_only:
        load_strictly(model, state, source=str(path), target="the recipe's network")
        return f"weights of {path}"
    own = model.state_dict()
    fitting = {name: tensor for name, tensor in state.items() if name in own and own[name].shape == tensor.shape}
    if not fitting:
        raise ValueError(f"{path}: none of its {len(state)} tensors fits the recipe's network in name and shape")
    model.load_state_dict({**own, **fitting})
    fresh = [name for name in own if name not in fitting and not name.endswith("num_batches_tracked")]
    logger.info("left fresh: %s", ", ".join(fresh))
    return f"{len(fitting)} of {len(own)} tensors from {path}, {len(fresh)} fresh, {len(state) - len(fitting)} unused"


def open_frames(root: Path, inputs: InputConfig, *, split: str, version: str | None, reduce: int = 1) -> NuScenesFrames:
    """The keyframes of a split, with the history that a network wants."""
    history = history_of(inputs)
    return NuScenesFrames(
        root,
        version=version,
        split=split,
        camera_history=history.cameras,
        lidar_history=history.lidar,
        reduce=reduce,
    )


def start_training(
    recipe: Recipe,
    *,
    name: str,
    data: Path,
    out: Path,
    world: World,
    version: str | None = None,
    start: Start | None = None,
    command: str = "",
    tensorboard: bool = False,
    console: Console | None = None,
) -> Trainer:
    """A trainer of the recipe on a data set, resumed where the folder holds a run of the same recipe.

    Raises:
        FileNotFoundError: data or labels are missing.
        ValueError: the data do not fit the recipe, or the folder holds a run of another recipe.
        OSError: the folder cannot be written, or the disk is too small.
    """
    inputs, settings = recipe.model.inputs, recipe.train
    frames = open_frames(data, inputs, split=recipe.data.train_split, version=version, reduce=recipe.data.reduce)
    share = _share(recipe, world)
    source = OccupancyExamples(frames, recipe.data, recipe.needs, seed=settings.seed, share=share)
    labelled = None
    if recipe.data.val_keyframes != 0:
        labelled = _held_out(recipe, open_frames(data, inputs, split=recipe.data.val_split, version=version))
    model = fresh_network(recipe)
    begun = load_start(model, start or Start())
    seen = f"{frames.version} {recipe.data.train_split}, {len(frames)} keyframes, recipe {name}"
    recorder = Recorder(
        out,
        world=world,
        checkpoints=settings.checkpoints,
        log_every=settings.log_every,
        best_metric=recipe.best_metric,
        export=_export(ModelCard(preset=recipe.preset, trained_on=seen), recipe.model),
        run={"recipe": encode_config(recipe), "name": name, "command": command, "start": begun, "data": seen},
        check_resume=lambda run: check_same_recipe(recipe, run["recipe"]),
        tensorboard=tensorboard,
        console=console,
    )
    held_out = f"{len(labelled)} keyframes of {recipe.data.val_split}" if labelled else "nothing"
    recorder.say(f"{recipe.preset}: {seen}; {held_out} to evaluate; {begun}")
    return Trainer(
        settings,
        model=model,
        loss=_loss(recipe),
        source=source,
        world=world,
        recorder=recorder,
        evaluate=_evaluation(recipe, labelled, world, recorder) if labelled else None,
        teacher=_teacher(recipe, world),
    )


def _share(recipe: Recipe, world: World) -> Callable[[int], range]:
    """Which samples this process reads, of how many.

    Raises:
        ValueError: the processes were told of another number of shards than the recipe has.
    """
    batch = recipe.train.batch
    if world.shards not in (1, batch.shards):
        raise ValueError(
            f"--shard: the processes have {world.shards} shards, the recipe has {batch.shards}; "
            f"say --set train.batch.shards={world.shards}"
        )
    return partial(batch.samples, rank=world.sample_rank, processes=world.size)


def _held_out(recipe: Recipe, frames: NuScenesFrames) -> LabelledFrames:
    network = recipe.model
    return LabelledFrames(frames, network.inputs, network.grid, network.label_set, rays=False, seed=recipe.train.seed)


def _evaluation(
    recipe: Recipe, labelled: LabelledFrames, world: World, recorder: Recorder
) -> Callable[[Any], Mapping[str, float]]:
    return lambda network: summary(
        evaluate(
            as_used(network, recipe.model),
            labelled,
            world=world,
            workers=recipe.train.workers,
            precision=recipe.train.precision,
            limit=recipe.data.val_keyframes,
            progress=recorder.evaluating,
        )
    )


def _loss(recipe: Recipe) -> Callable[[Outputs, Targets], Losses]:
    return lambda outputs, targets: compute_losses(outputs, targets, recipe.loss, recipe.model.label_set)


def _teacher(recipe: Recipe, world: World) -> Callable[[Ema], Teacher] | None:
    config = recipe.train.teacher
    if config is None:
        return None
    model = taking_measured_depth(recipe.model) if config.measured_depth else recipe.model
    loss = taught_terms(recipe.loss, has_density=isinstance(model, RenderOccConfig))
    labels = model.label_set
    return lambda ema: Teacher(
        config,
        network=make_network(model).to(world.device),
        ema=ema,
        label_set=labels,
        loss=lambda outputs, targets: compute_losses(outputs, targets, loss, labels),
    )


def _export(card: ModelCard, config: NetworkConfig) -> Export:
    def export(model: Any, path: Path, metrics: Mapping[str, float]) -> None:
        told = ModelCard(preset=card.preset, trained_on=card.trained_on, metrics=dict(metrics))
        publish(path, lambda partial: _save(as_used(model, config), partial, told))

    return export


def _save(model: Any, path: Path, card: ModelCard) -> None:
    try:
        save_model(model, path, card=card)
    except SafetensorError as error:  # its writer has no other error for a full disk
        if "os error" in str(error):
            raise OSError(errno.ENOSPC, f"{path}: {error}") from error
        raise
