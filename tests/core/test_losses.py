"""Every loss: recorded values of the reference, plain loops, and inputs where the reference gives NaN."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import FREE, UNKNOWN, volume

from fusionocc_core.grids import OCC3D_LABELS
from fusionocc_core.losses import (
    OCC3D_VOXEL_COUNTS,
    Targets,
    balancing_weights,
    compute_losses,
    depth_loss,
    distance_weights,
    fusionocc_losses,
    geometric_affinity,
    lovasz_softmax,
    panoptic_flashocc_losses,
    segmentation_loss,
    semantic_affinity,
    voxel_cross_entropy,
    voxel_focal,
)
from fusionocc_core.structures import Outputs


def rows(logits, labels):
    """Scores and label of each known voxel, as lists."""
    known = labels != UNKNOWN
    return logits.movedim(1, -1)[known].tolist(), labels[known].tolist()


def softmax(scores):
    top = max(scores)
    exps = [math.exp(s - top) for s in scores]
    return [e / sum(exps) for e in exps]


def recorded_outputs(file):
    outputs = Outputs(
        logits_BKXYZ=torch.from_numpy(file["logits_BXYZK"]).float().permute(0, 4, 1, 2, 3),
        seg_logits_BNKhw=torch.from_numpy(file["seg_logits_BNKhw"]).float(),
    )
    targets = Targets(
        labels_BXYZ=torch.from_numpy(file["labels_BXYZ"]),
        mask_camera_BXYZ=torch.from_numpy(file["mask_camera_BXYZ"]),
        segmentation_BNHW=torch.from_numpy(file["seg_labels_BNhw"]),
    )
    return outputs, targets


@pytest.mark.parametrize(("mask", "key"), [("camera", "loss_occ_mask"), ("none", "loss_occ")])
def test_fusionocc_terms_equal_the_recorded_ones(goldens, mask, key):
    file = np.load(goldens / "losses_fusionocc.npz")
    config = replace(fusionocc_losses(mask=mask), depth=0.0)
    losses = compute_losses(*recorded_outputs(file), config, OCC3D_LABELS)
    # The file holds the scores in float16; in float32 the values agree to 1e-6, see test_losses_network.
    assert losses.terms["cross_entropy"].item() == pytest.approx(float(file[key]), rel=1e-4)
    assert losses.terms["segmentation"].item() == pytest.approx(float(file["seg_loss"]), rel=1e-4)
    assert losses.total.item() == pytest.approx(float(file[key]) + float(file["seg_loss"]), rel=1e-4)


def test_depth_equals_the_recorded_one(goldens):
    file = np.load(goldens / "losses_bevdepth.npz")
    logits = torch.from_numpy(file["depth_logits"])[None]
    bins = torch.from_numpy(file["bins"] + 1).view(1, len(file["depth_logits"]), *logits.shape[-2:])
    assert depth_loss(logits, bins).item() == pytest.approx(float(file["loss"]), rel=1e-5)


def test_weights_equal_the_recorded_ones():
    weights = balancing_weights(OCC3D_VOXEL_COUNTS)
    assert weights[0] == pytest.approx(0.07268559, abs=1e-8)
    assert weights[17] == pytest.approx(0.04681393, abs=1e-8)
    by_distance = distance_weights(200, 200)
    assert by_distance[0, 0] == 2.0
    assert by_distance[100, 100] == 1.0
    assert by_distance[0, 10].item() == pytest.approx(1 + math.hypot(100, 90) / math.hypot(100, 100), abs=1e-6)
    with pytest.raises(ValueError, match="at least 2 voxels"):
        balancing_weights((5, 0))


@pytest.fixture(scope="module")
def panoptic(shared):
    """The recorded head: its weights as leaves, scores, labels."""
    file = {k: torch.from_numpy(v) for k, v in np.load(shared / "goldens/flashocc/head_v2_losses.npz").items()}
    weights = {k: v.clone().requires_grad_() for k, v in file.items() if k.startswith("sd/")}
    w = {k.removeprefix("sd/"): v for k, v in weights.items()}
    hidden = F.relu(F.conv2d(file["x"], w["final_conv.conv.weight"], w["final_conv.conv.bias"], padding=1))
    hidden = F.softplus(F.linear(hidden.permute(0, 3, 2, 1), w["predicter.0.weight"], w["predicter.0.bias"]))
    scores = F.linear(hidden, w["predicter.2.weight"], w["predicter.2.bias"]).view(1, 200, 200, 2, 18)
    torch.testing.assert_close(scores[0, ::20, ::20], file["logits_sample"])
    return file, weights, scores.permute(0, 4, 1, 2, 3)


@pytest.mark.data
def test_panoptic_terms_and_gradients_equal_the_recorded_ones(panoptic):
    file, weights, logits = panoptic
    # One column was set to unknown after the four losses were recorded, for the focal loss alone.
    labels = file["gt_semantics"].where(file["gt_semantics"] != UNKNOWN, 17)
    losses = compute_losses(
        Outputs(logits_BKXYZ=logits), Targets(labels_BXYZ=labels), panoptic_flashocc_losses(), OCC3D_LABELS
    )
    names = {
        "focal": "loss_occ",
        "semantic_affinity": "loss_voxel_sem_scal",
        "geometric_affinity": "loss_voxel_geo_scal",
        "lovasz": "loss_voxel_lovasz",
    }
    assert set(losses.terms) == set(names)
    for ours, theirs in names.items():
        assert losses.terms[ours].item() == pytest.approx(file[f"loss/{theirs}"].item(), rel=1e-5)
    gradients = torch.autograd.grad(losses.total, list(weights.values()), retain_graph=True)
    for name, gradient in zip(weights, gradients, strict=True):
        recorded = file[name.replace("sd/", "grad/")]
        assert (gradient - recorded).norm() <= 1e-3 * recorded.norm()


@pytest.mark.data
def test_focal_leaves_unknown_voxels_out_as_the_reference_does(panoptic):
    file, _, logits = panoptic
    assert (file["gt_semantics"] == UNKNOWN).sum() == 2
    value = voxel_focal(
        logits,
        file["gt_semantics"],
        unknown=UNKNOWN,
        class_weights=file["class_weights"].tolist(),
        column_weights_XY=distance_weights(200, 200),
    )
    assert 100 * value.item() == pytest.approx(file["focal_with_one_ignored"].item(), rel=1e-5)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000), masked=st.booleans(), weighted=st.booleans())
def test_cross_entropy_equals_a_plain_loop(seed, masked, weighted):
    logits, labels = volume(seed)
    mask = torch.rand(labels.shape, generator=torch.Generator().manual_seed(seed)) < 0.5 if masked else None
    weights = (0.5, 2.0, 1.0, 0.1) if weighted else None
    total, norm = 0.0, 0.0
    for index in np.ndindex(tuple(labels.shape)):
        label = int(labels[index])
        if label == UNKNOWN or (masked and not mask[index]):
            continue
        weight = weights[label] if weighted else 1.0
        b, x, y, z = index
        total -= weight * math.log(softmax(logits[b, :, x, y, z].tolist())[label])
        norm += weight
    ours = voxel_cross_entropy(logits, labels, unknown=UNKNOWN, mask_BXYZ=mask, class_weights=weights)
    assert ours.item() == pytest.approx(total / norm, rel=1e-5)


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 1000))
def test_focal_equals_a_plain_loop(seed):
    logits, labels = volume(seed)
    columns, channels = torch.rand(5, 4, generator=torch.Generator().manual_seed(seed)), (0.5, 2.0, 1.0, 0.1)
    total = 0.0
    for b, x, y, z in np.ndindex(tuple(labels.shape)):
        for k in range(4):
            p, label = 1 / (1 + math.exp(-logits[b, k, x, y, z].item())), int(labels[b, x, y, z])
            if label != UNKNOWN:
                p, alpha = (p, 0.25) if label == k else (1 - p, 0.75)
                total -= alpha * (1 - p) ** 2 * math.log(p) * channels[k] * columns[x, y].item()
    ours = voxel_focal(
        logits, labels, unknown=UNKNOWN, class_weights=channels, column_weights_XY=columns, alpha=0.25, gamma=2.0
    )
    assert ours.item() == pytest.approx(total / (labels != UNKNOWN).sum().item(), rel=1e-4)


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 1000))
def test_affinities_equal_a_plain_loop(seed):
    logits, labels = volume(seed, classes=(0, 2, 3, UNKNOWN))
    scores, label = rows(logits, labels)
    probability = [softmax(s) for s in scores]

    def three_terms(said, own):
        both = sum(p for p, t in zip(said, own, strict=True) if t)
        neither = sum(1 - p for p, t in zip(said, own, strict=True) if not t)
        return -sum(math.log(r) for r in (both / sum(said), both / sum(own), neither / (len(own) - sum(own))))

    per_class = [three_terms([p[k] for p in probability], [t == k for t in label]) for k in (0, 2)]
    assert semantic_affinity(logits, labels, unknown=UNKNOWN, free=FREE).item() == pytest.approx(
        sum(per_class) / 2, rel=1e-4
    )
    occupied = three_terms([1 - p[FREE] for p in probability], [t != FREE for t in label])
    assert geometric_affinity(logits, labels, unknown=UNKNOWN, free=FREE).item() == pytest.approx(occupied, rel=1e-4)


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 1000))
def test_lovasz_equals_its_definition(seed):
    """Sum of the sorted errors, each times how much the Jaccard loss of the set of worst voxels grows by it."""
    logits, labels = volume(seed, classes=(0, 2, 3, UNKNOWN))
    scores, label = rows(logits, labels)
    probability = [softmax(s) for s in scores]
    terms = []
    for k in (0, 2, 3):
        own = [t == k for t in label]
        error = [abs(t - p[k]) for t, p in zip(own, probability, strict=True)]
        order = sorted(range(len(own)), key=lambda i: -error[i])
        value, before = 0.0, 0.0
        for n in range(1, len(order) + 1):
            worst = order[:n]
            missed = sum(own[i] for i in worst)
            jaccard = 1 - (sum(own) - missed) / (sum(own) + n - missed)
            value += error[order[n - 1]] * (jaccard - before)
            before = jaccard
        terms.append(value)
    assert lovasz_softmax(logits, labels, unknown=UNKNOWN).item() == pytest.approx(sum(terms) / 3, rel=1e-4)


def test_perfect_scores_cost_nothing():
    _, labels = volume(1, classes=(0, 1, 2, 3))
    logits = 100 * F.one_hot(labels.long(), 4).movedim(-1, 1).float() - 50
    for loss in (voxel_cross_entropy, voxel_focal, lovasz_softmax):
        assert loss(logits, labels, unknown=UNKNOWN).item() == pytest.approx(0, abs=1e-4)
    for loss in (semantic_affinity, geometric_affinity):
        assert loss(logits, labels, unknown=UNKNOWN, free=FREE).item() == pytest.approx(0, abs=1e-4)


VOXEL_LOSSES = {
    "cross_entropy": lambda z, t: voxel_cross_entropy(z, t, unknown=UNKNOWN),
    "masked": lambda z, t: voxel_cross_entropy(z, t, unknown=UNKNOWN, mask_BXYZ=torch.zeros(t.shape, dtype=torch.bool)),
    "balanced": lambda z, t: voxel_cross_entropy(z, t, unknown=UNKNOWN, class_weights=(1.0, 1.0, 1.0, 1.0)),
    "focal": lambda z, t: voxel_focal(z, t, unknown=UNKNOWN, column_weights_XY=distance_weights(5, 4)),
    "lovasz": lambda z, t: lovasz_softmax(z, t, unknown=UNKNOWN),
    "semantic": lambda z, t: semantic_affinity(z, t, unknown=UNKNOWN, free=FREE),
    "geometric": lambda z, t: geometric_affinity(z, t, unknown=UNKNOWN, free=FREE),
}


@pytest.mark.parametrize("name", VOXEL_LOSSES)
def test_nothing_labelled_is_zero_and_connected(name):
    logits, labels = volume(0, classes=(UNKNOWN,))
    logits.requires_grad_()
    value = VOXEL_LOSSES[name](logits, labels)
    value.backward()
    assert value.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("only", [FREE, 1])
@pytest.mark.parametrize("name", VOXEL_LOSSES)
def test_scenes_of_one_class_stay_finite(name, only):
    logits, labels = volume(0, classes=(only, UNKNOWN))
    logits.requires_grad_()
    value = VOXEL_LOSSES[name](logits, labels)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", VOXEL_LOSSES)
def test_extreme_and_half_precision_scores_stay_finite(name):
    logits, labels = volume(0)
    for extreme in (1e4 * logits.sign(), logits.to(torch.bfloat16), logits.half()):
        extreme = extreme.detach().requires_grad_()
        value = VOXEL_LOSSES[name](extreme, labels)
        value.backward()
        assert value.dtype == torch.float32
        assert torch.isfinite(value)
        assert torch.isfinite(extreme.grad).all()


def test_lovasz_and_affinity_gradients_are_those_of_their_values():
    logits, labels = volume(5, samples=1)
    for loss in (VOXEL_LOSSES["semantic"], VOXEL_LOSSES["geometric"], VOXEL_LOSSES["focal"], VOXEL_LOSSES["lovasz"]):
        leaf = logits.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(leaf, labels), leaf)
        step = 1e-2 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
        change = (loss(logits + step, labels) - loss(logits - step, labels)) / 2
        assert change.item() == pytest.approx((gradient * step).sum().item(), rel=2e-2, abs=1e-5)


def test_depth_and_segmentation_look_at_labelled_cells_alone():
    random = torch.Generator().manual_seed(0)
    depth, seg = torch.randn(1, 2, 5, 3, 4, generator=random), torch.randn(1, 2, 4, 3, 4, generator=random)
    bins = torch.zeros(1, 2, 3, 4, dtype=torch.long)
    assert depth_loss(depth, bins).item() == 0
    bins[0, 1, 2, 3] = 5
    p = softmax(depth[0, 1, :, 2, 3].tolist())
    expected = -math.log(p[4]) - sum(math.log(1 - q) for q in p[:4])
    assert depth_loss(depth, bins).item() == pytest.approx(expected, rel=1e-5)

    labels = torch.full((1, 2, 24, 32), FREE, dtype=torch.uint8)
    labels[0, 0, 1, 1] = 2  # not the upper left pixel of its cell
    assert segmentation_loss(seg, labels, ignored=(FREE, UNKNOWN)).item() == 0
    labels[0, 0, 8, 16] = 2
    expected = -math.log(softmax(seg[0, 0, :, 1, 2].tolist())[2])
    assert segmentation_loss(seg, labels, ignored=(FREE, UNKNOWN)).item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="23 x 32 pixels are not a whole multiple of the 3 x 4"):
        segmentation_loss(seg, labels[:, :, :23], ignored=(FREE,))


def test_depth_survives_scores_that_are_sure():
    logits = torch.zeros(1, 1, 5, 1, 1)
    logits[:, :, 0] = 1000.0
    for bin_of_truth in (1, 2):
        leaf = logits.clone().requires_grad_()
        value = depth_loss(leaf, torch.full((1, 1, 1, 1), bin_of_truth))
        value.backward()
        assert value.item() == (0 if bin_of_truth == 1 else 200)  # logarithms end at -100
        assert torch.isfinite(leaf.grad).all()
