"""A recipe: everything that decides what a training run computes, in one frozen object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from typing import Any

from fusionocc_core.checkpoints import encode_config
from fusionocc_core.engine.occupancy_examples import DataConfig, ExampleNeeds
from fusionocc_core.engine.trainer import TrainConfig
from fusionocc_core.losses import LossConfig
from fusionocc_core.models.lifted_frames import FramesConfig
from fusionocc_core.models.network import NetworkConfig
from fusionocc_core.models.renderocc import RenderOccConfig
from fusionocc_core.ops.volume_render_rays import RenderConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A network, its data, its losses, and how it is trained."""

    preset: str
    """What the network is called on its card."""
    model: NetworkConfig
    loss: LossConfig
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    best_metric: str = "miou_camera"
    """By which the best weights are chosen: "miou_" or "iou_" and the mask: camera, lidar or none."""

    def __post_init__(self) -> None:
        """Refuse a metric that no evaluation gives."""
        if self.best_metric not in METRICS:
            raise ValueError(f"Recipe.best_metric={self.best_metric!r}: expected one of {METRICS}")
        data = self.data
        if self.train.batch.shards > 1 and (
            data.labelled_share < 1 or data.labelled_repeats > 1 or data.unlabelled_sweeps or self.loss.rendering
        ):
            raise ValueError(
                f"Recipe: train.batch.shards={self.train.batch.shards} goes with keyframes that come once each and "
                "need no others: set data.labelled_share=1, data.labelled_repeats=1 and data.unlabelled_sweeps=false, "
                f"which are {data.labelled_share}, {data.labelled_repeats} and {data.unlabelled_sweeps}, and leave out "
                "loss.rendering"
            )
        if self.loss.rendering:
            check_rendering(self.loss.rendering.render, self.model)
        unlabelled = self.data.labelled_share < 1 and self.data.unlabelled == "keep"
        if self.train.teacher and not (unlabelled or self.data.unlabelled_sweeps):
            raise ValueError(
                "Recipe: train.teacher teaches keyframes without labels, but there are none: set data.labelled_share "
                f"below 1 and data.unlabelled=keep, which are {self.data.labelled_share} and {self.data.unlabelled}, "
                "or data.unlabelled_sweeps=true"
            )

    @property
    def needs(self) -> ExampleNeeds:
        """What the network and its losses want from a sample."""
        teacher = self.train.teacher
        return ExampleNeeds(
            inputs=self.model.inputs,
            grid=self.model.grid,
            label_set=self.model.label_set,
            depth_bins=self.model.depth_bins if self.loss.depth else None,
            stride=self.model.feature_stride,
            segmentation=self.loss.segmentation > 0,
            center_classes=self.loss.center_classes,
            voxels=self.loss.needs_voxel_labels,
            rays=self.loss.rendering is not None,
            teacher=teacher is not None,
            practice=teacher.practice if teacher and teacher.practised else None,
        )

    @property
    def trained_model(self) -> NetworkConfig:
        """The network's config while it is trained: where a teacher's student practises, it takes measured depth."""
        teacher = self.train.teacher
        return taking_measured_depth(self.model) if teacher and teacher.practised else self.model


def taking_measured_depth(model: NetworkConfig) -> FramesConfig:
    """The network that lifts to measured depth where a sample has some.

    Raises:
        ValueError: networks of its kind cannot.
    """
    if not isinstance(model, FramesConfig):
        raise ValueError(
            f"train.teacher.measured_depth=True: a {type(model).__name__} has no depth_source; FlashOcc, RenderOcc "
            "and UniOcc have, other networks are taught with --set train.teacher.measured_depth=false"
        )
    return replace(model, depth_source="measured")


def check_rendering(render: RenderConfig, model: NetworkConfig) -> None:
    """Rays must be sent through the space that the network answers on, and its densities mean what they are taken for.

    Raises:
        ValueError: they are not.
    """
    grid = model.grid
    side, cells = grid.upper[0] - grid.lower[0], grid.shape[0]
    if abs(2 * render.extent - side) > 1e-3 or render.cells_across != cells:
        raise ValueError(
            f"loss.rendering.render is for {2 * render.extent} m in {render.cells_across} voxels, the network answers "
            f"on {side} m in {cells}: take data.render_rays.rendering_of(grid)"
        )
    meant = model.head.density if isinstance(model, RenderOccConfig) else "metric"
    if (render.opacity == "official") != (meant == "official"):
        raise ValueError(
            f"loss.rendering.render.opacity={render.opacity!r}, but the network's density is {meant!r}: both must be "
            "official or none (class scores are rendered as 'log_odds' or 'metric')"
        )


METRICS = tuple(f"{kind}_{mask}" for kind in ("miou", "iou") for mask in ("camera", "lidar", "none"))
"""Names in the result of an evaluation during training; fractions."""

FREE_TO_CHANGE = ("train.workers", "train.log_every", "train.evaluate_every", "train.checkpoints", "best_metric")
"""What may differ when a run goes on: nothing of it changes what is computed."""


def check_same_recipe(recipe: Recipe, earlier: Mapping[str, Any]) -> None:
    """Refuse to go on with another recipe than the one that the run began with.

    Fields that did not exist yet when the run began count as their defaults, which change nothing.

    Args:
        recipe: of this call.
        earlier: of the checkpoint, as ``encode_config`` wrote it.

    Raises:
        ValueError: naming the keys and both values.
    """
    now, then = flat_recipe(encode_config(recipe)), flat_recipe(_completed(recipe, earlier))
    different = [
        f"{key}: {then.get(key)} then, {now.get(key)} now"
        for key in sorted(now.keys() | then.keys())
        if now.get(key) != then.get(key) and not key.startswith(FREE_TO_CHANGE)
    ]
    if different:
        raise ValueError(
            f"the run in this folder was begun with another recipe ({'; '.join(different)}); choose another --out, or "
            "go on with the recipe that it has"
        )


def _completed(config: Any, earlier: Any) -> Any:
    """What ``encode_config`` wrote of an earlier config, with the fields that it lacks at their defaults."""
    if not is_dataclass(config) or not isinstance(earlier, Mapping):
        return earlier
    filled = dict(earlier)
    for f in fields(config):
        if f.name in filled:
            filled[f.name] = _completed(getattr(config, f.name), filled[f.name])
        elif f.default is not MISSING:
            filled[f.name] = encode_config(f.default)
        elif f.default_factory is not MISSING:
            filled[f.name] = encode_config(f.default_factory())
    return filled


def flat_recipe(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys and values of what ``encode_config`` wrote; the keys of ``--set``, and "class" of every group."""
    if isinstance(value, Mapping):
        parts = (flat_recipe(item, f"{prefix}{key}.") for key, item in value.items())
        return {key: item for part in parts for key, item in part.items()}
    return {prefix.rstrip("."): value}
