"""A teacher for keyframes without labels: the averaged network, which knows the measured depth (UniOcc, Pan et al.).

The student sees augmented pictures and predicts depth; the teacher sees the pictures as they are, and where the LiDAR
has a point its depth is that point's (layers/measured_depth.py). Where the teacher is sure, its answer is a label.

The paper's code was never published. Ours: which voxels count, the ramp, and that the teacher's space is augmented like
the student's, so that voxels lie upon each other without being resampled. Legend: B samples, U those without labels,
X Y Z voxels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fusionocc_core.engine.ema import Ema
from fusionocc_core.engine.examples import Unlabelled
from fusionocc_core.grids import LabelSet
from fusionocc_core.losses import LossConfig, Losses, Targets
from fusionocc_core.structures import Outputs


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """What the teacher may say, and from when on."""

    weight: float = 1.0
    """Of all that it teaches, in the end."""
    confidence: float = 0.9
    """Its labels count where it gives them more than this probability."""
    free_share: float = 0.1
    """Share of the voxels that it is sure are free which count, drawn anew each time: there are many."""
    start_epoch: float = 12.0
    """Passes over the data before it begins."""
    ramp_epochs: float = 2.0
    """Passes over which its weight then rises from 0."""
    measured_depth: bool = True
    """False: it predicts depth everywhere, as the student does."""
    practice: float = 0.5
    """Chance that a labelled keyframe shows the student its measured depth, so that the averages have learnt what to
    make of certain depth before they teach with it. 0: they never have; then it does them more harm than good."""

    def __post_init__(self) -> None:
        """Refuse shares that are none, and times before the beginning."""
        if not (0 <= self.confidence < 1 and 0 <= self.free_share <= 1 and 0 <= self.practice <= 1):
            raise ValueError(
                f"TeacherConfig: expected 0 <= confidence={self.confidence} < 1, and free_share={self.free_share} and "
                f"practice={self.practice} from 0 to 1"
            )
        if self.weight <= 0 or min(self.start_epoch, self.ramp_epochs) < 0:
            raise ValueError(
                f"TeacherConfig: weight={self.weight} must be positive, start_epoch={self.start_epoch} and "
                f"ramp_epochs={self.ramp_epochs} not negative"
            )

    @property
    def practised(self) -> bool:
        """Whether the student is ever shown measured depth."""
        return self.measured_depth and self.practice > 0

    def weight_at(self, epoch: float) -> float:
        """The weight after so many passes over the data."""
        if epoch < self.start_epoch:
            return 0.0
        done = (epoch - self.start_epoch) / self.ramp_epochs if self.ramp_epochs else 1.0
        return self.weight * min(done, 1.0)


class LossTerms(Protocol):
    """What a loss function gives."""

    @property
    def total(self) -> Tensor: ...  # noqa: D102
    @property
    def terms(self) -> Mapping[str, Tensor]: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class TaughtLosses:
    """Losses with those of a teacher added."""

    total: Tensor
    terms: Mapping[str, Tensor]


class Teacher:
    """Holds no weights of its own: its tensors are the averages, and checkpoints keep those already.

    Args:
        config: what it may say.
        network: of the student's kind; with ``measured_depth`` its config has depth_source="measured".
        ema: the averages.
        label_set: of the answers.
        loss: (outputs, targets) -> terms of voxels alone; see taught_terms.
    """

    def __init__(
        self,
        config: TeacherConfig,
        *,
        network: nn.Module,
        ema: Ema,
        label_set: LabelSet,
        loss: Callable[[Outputs, Targets], Losses],
    ) -> None:
        self.config, self.label_set, self.loss = config, label_set, loss
        network.load_state_dict(ema.average, assign=True)
        self.network = network.requires_grad_(False).eval()

    @torch.no_grad()
    def labels(self, unlabelled: Unlabelled | None, epoch: float) -> Tensor | None:
        """uint8 (U, X, Y, Z) classes, unknown where it is not sure; None where it has nothing to say (yet)."""
        if unlabelled is None or self.config.weight_at(epoch) == 0:
            return None
        return sure_labels(self.network(unlabelled.batch), self.config, self.label_set)

    def joined(
        self, losses: LossTerms, outputs: Outputs, unlabelled: Unlabelled | None, labels: Tensor | None, epoch: float
    ) -> TaughtLosses:
        """The losses with the teacher's: the terms are the same in every step, zero where it says nothing."""
        if unlabelled is None or labels is None:
            labels = torch.full_like(outputs.logits_BKXYZ[:1, 0], self.label_set.unknown, dtype=torch.uint8)
            places_U = torch.zeros(1, dtype=torch.int64, device=labels.device)
        else:
            places_U = unlabelled.places_U
        taught = self.loss(_samples(outputs, places_U), Targets(labels_BXYZ=labels))
        weight = self.config.weight_at(epoch)
        terms = {f"taught_{name}": value * weight for name, value in taught.terms.items()}
        return TaughtLosses(total=losses.total + taught.total * weight, terms={**losses.terms, **terms})


def sure_labels(outputs: Outputs, config: TeacherConfig, label_set: LabelSet) -> Tensor:
    """uint8 (B, X, Y, Z): the most probable class where its probability exceeds the confidence, else unknown."""
    probability, label = _most_probable(outputs, label_set.free)
    sure = probability > config.confidence
    drawn = torch.rand(label.shape, device=label.device) < config.free_share
    counts = sure & ((label != label_set.free) | drawn)
    return torch.where(counts, label, label_set.unknown).to(torch.uint8)


def _most_probable(outputs: Outputs, free: int) -> tuple[Tensor, Tensor]:
    if outputs.density is None:
        best = outputs.logits_BKXYZ.float().softmax(dim=1).max(dim=1)
        return best.values, best.indices
    occupied_BXYZ = outputs.density.occupied_logits_BXYZ.float().sigmoid()
    semantic = outputs.density.semantic_BXYZK.float().softmax(dim=-1).max(dim=-1)
    is_free = occupied_BXYZ < 0.5
    label = torch.where(is_free, free, semantic.indices + (semantic.indices >= free).long())
    return torch.where(is_free, 1 - occupied_BXYZ, occupied_BXYZ * semantic.values), label


def taught_terms(loss: LossConfig, *, has_density: bool) -> LossConfig:
    """Those terms of a recipe that look at labels of voxels, over all of them; where it has none, plain ones."""
    plain = not loss.needs_voxel_labels
    return replace(
        loss,
        depth=0.0,
        segmentation=0.0,
        center_heatmap=0.0,
        center_position=0.0,
        center_classes=(),
        rendering=None,
        mask="none",
        cross_entropy=1.0 if plain and not has_density else loss.cross_entropy,
        occupied=1.0 if plain and has_density else loss.occupied,
        occupied_class=1.0 if plain and has_density else loss.occupied_class,
    )


def _samples(value: Any, places_U: Tensor) -> Any:
    """Some samples of a dataclass of tensors, all of which have the samples along their first axis."""
    if isinstance(value, Tensor):
        return value[places_U]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _samples(getattr(value, f.name), places_U) for f in fields(value)})
    return value
