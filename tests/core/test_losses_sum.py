"""The sum of the losses: weights, batches without labels, labels and shapes that do not fit."""

import logging
from dataclasses import dataclass, replace

import pytest
import torch
from loss_cases import FREE, LABELS, UNKNOWN, volume
from torch import Tensor

from fusionocc_core.losses import (
    LossConfig,
    Targets,
    collate_targets,
    compute_losses,
    flashocc_losses,
    fusionocc_losses,
)
from fusionocc_core.structures import Outputs


@dataclass(frozen=True)
class Case:
    outputs: Outputs
    targets: Targets


def whole_case(seed=0) -> Case:
    random = torch.Generator().manual_seed(seed)
    logits, labels = volume(seed)
    return Case(
        outputs=Outputs(
            logits_BKXYZ=logits.requires_grad_(),
            depth_logits_BNDhw=torch.randn(2, 3, 6, 2, 4, generator=random).requires_grad_(),
            seg_logits_BNKhw=torch.randn(2, 3, 4, 2, 4, generator=random).requires_grad_(),
        ),
        targets=Targets(
            labels_BXYZ=labels,
            mask_camera_BXYZ=torch.rand(labels.shape, generator=random) < 0.5,
            depth_bins_BNhw=torch.randint(0, 7, (2, 3, 2, 4), generator=random),
            segmentation_BNHW=torch.randint(0, 4, (2, 3, 32, 64), generator=random).to(torch.uint8),
        ),
    )


def test_the_sum_is_the_weighted_terms():
    case = whole_case()
    config = LossConfig(
        cross_entropy=1.0,
        focal=2.0,
        lovasz=0.5,
        semantic_affinity=0.3,
        geometric_affinity=0.2,
        depth=0.1,
        segmentation=0.7,
    )
    losses = compute_losses(case.outputs, case.targets, config, LABELS)
    assert [part.name for part in losses.parts] == [
        "cross_entropy",
        "focal",
        "semantic_affinity",
        "geometric_affinity",
        "lovasz",
        "depth",
        "segmentation",
    ]
    for part in losses.parts:
        assert part.weight == getattr(config, part.name)
        assert losses.terms[part.name].item() == pytest.approx(part.weight * part.value.item(), rel=1e-6)
    assert losses.total.item() == pytest.approx(sum(t.item() for t in losses.terms.values()), rel=1e-6)
    losses.total.backward()
    for tensor in (case.outputs.logits_BKXYZ, case.outputs.depth_logits_BNDhw, case.outputs.seg_logits_BNKhw):
        assert tensor.grad.abs().sum() > 0
    counted = {part.name: part.labelled for part in losses.parts}
    assert counted["depth"] == (case.targets.depth_bins_BNhw > 0).sum()
    assert counted["segmentation"] == (case.targets.segmentation_BNHW[..., ::16, ::16] != FREE).sum()
    assert counted["cross_entropy"] == (case.targets.labels_BXYZ != UNKNOWN).sum()


def test_a_batch_without_labels_is_zero_and_said_so(caplog):
    case = whole_case()
    targets = replace(
        case.targets,
        depth_bins_BNhw=torch.zeros_like(case.targets.depth_bins_BNhw),
        segmentation_BNHW=torch.full_like(case.targets.segmentation_BNHW, FREE),
    )
    with caplog.at_level(logging.INFO):
        losses = compute_losses(case.outputs, targets, fusionocc_losses(mask="camera"), LABELS)
    assert losses.terms["depth"] == losses.terms["segmentation"] == 0
    assert [part.labelled for part in losses.parts][1:] == [0, 0]
    assert "loss depth: nothing in this batch" in caplog.text
    losses.total.backward()
    assert torch.isfinite(case.outputs.depth_logits_BNDhw.grad).all()


def test_two_samples_equal_the_two_together():
    case = whole_case()
    tensors = {name: value for name, value in vars(case.targets).items() if value is not None}
    singles = [Targets(**{name: tensor[n : n + 1] for name, tensor in tensors.items()}) for n in range(2)]
    joined = collate_targets(singles)
    for name, tensor in tensors.items():
        assert torch.equal(getattr(joined, name), tensor)
    assert joined.mask_lidar_BXYZ is None
    assert joined.to("cpu").labels_BXYZ.dtype == torch.uint8
    with pytest.raises(ValueError, match="1 of 2 samples of a batch lack it"):
        collate_targets([singles[0], replace(singles[1], mask_camera_BXYZ=None)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels_BXYZ": 4}, r"labels_BXYZ holds 4; expected 0\.\.3"),
        ({"depth_bins_BNhw": 7}, r"depth_bins_BNhw holds 7; expected 0\.\.6"),
        ({"segmentation_BNHW": 9}, r"segmentation_BNHW holds 9; expected 0\.\.3"),
        ({"segmentation_BNHW": None}, r"Targets.segmentation_BNHW is None"),
        ({"mask_camera_BXYZ": None}, r"LossConfig.mask='none'"),
    ],
)
def test_labels_that_do_not_fit_are_named(change, message):
    case = whole_case()
    ((name, value),) = change.items()
    tensor = getattr(case.targets, name)
    wrong: Tensor | None = None if value is None else torch.full_like(tensor, value)
    with pytest.raises(ValueError, match=message):
        compute_losses(case.outputs, replace(case.targets, **{name: wrong}), fusionocc_losses(), LABELS)


def test_shapes_and_configs_that_do_not_fit_are_refused():
    case = whole_case()
    with pytest.raises(ValueError, match="does not fit logits"):
        compute_losses(
            replace(case.outputs, logits_BKXYZ=case.outputs.logits_BKXYZ[..., :2]), case.targets, LossConfig(), LABELS
        )
    with pytest.raises(ValueError, match=r"Outputs\.depth_logits_BNDhw is None"):
        compute_losses(replace(case.outputs, depth_logits_BNDhw=None), case.targets, LossConfig(depth=1.0), LABELS)
    with pytest.raises(ValueError, match="18 weights for 4 classes"):
        compute_losses(case.outputs, case.targets, flashocc_losses(balanced=True), LABELS)
    with pytest.raises(ValueError, match="expected bool"):
        replace(case.targets, mask_camera_BXYZ=case.targets.labels_BXYZ)
    with pytest.raises(ValueError, match=r"expected \(B, X, Y, Z\)"):
        Targets(labels_BXYZ=torch.zeros(3, 3))
    with pytest.raises(ValueError, match="2 samples"):
        replace(case.targets, depth_bins_BNhw=torch.zeros(1, 3, 2, 4))
    with pytest.raises(ValueError, match="mask='radar'"):
        LossConfig(mask="radar")
    with pytest.raises(ValueError, match="one must be positive"):
        LossConfig(cross_entropy=0.0)
