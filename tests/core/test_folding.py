"""Batch norms folded into convolutions, and labels without scores: the same answers as the plain network's."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from flashfusion_cases import little_batch, little_config, little_network
from fusionocc_cases import golden_model, random_batch
from torch import nn

from fusionocc_core.layers.conv_blocks import BasicBlock2d, conv_bn_3d
from fusionocc_core.layers.folding import fold_batch_norms
from fusionocc_core.layers.resnet import ResNetBackbone, ResNetConfig
from fusionocc_core.layers.thin_image_net import doubled, pixels_off_middle
from fusionocc_core.ops.column_labels import column_labels, column_labels_reference
from fusionocc_core.predictor import decode


def lively(module):
    """Norms that do something, in inference mode."""
    torch.manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.2, 3.0)
            if norm.affine:
                nn.init.normal_(norm.weight)
                nn.init.normal_(norm.bias)
    return module.eval()


def norms_of(module):
    return [name for name, part in module.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]


class Activated(nn.BatchNorm2d):
    """A norm of a library that does more than a norm."""

    def forward(self, x):
        return torch.relu(super().forward(x))


@pytest.mark.parametrize(
    ("make", "shape", "left"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()), (2, 3, 8, 8), 0),
        (lambda: nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6, affine=False)), (1, 4, 8, 8), 0),
        (lambda: conv_bn_3d(3, 4, relu=True), (1, 3, 4, 5, 6), 0),
        (lambda: nn.Sequential(BasicBlock2d(4), nn.BatchNorm2d(4)), (1, 4, 8, 8), 1),
        (lambda: ResNetBackbone(ResNetConfig(base_channels=4, blocks=(1, 1, 1, 1))), (1, 3, 64, 64), 0),
        (lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)), (1, 3, 4, 4), 1),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), Activated(4)), (1, 3, 4, 4), 1),
    ],
)
@torch.no_grad()
def test_folded_is_equal_and_the_original_stays(make, shape, left):
    module = lively(make())
    before = copy.deepcopy(module.state_dict())
    folded = fold_batch_norms(module)
    x = torch.randn(*shape)
    for one, other in zip(*(y if isinstance(y, list | tuple) else [y] for y in (module(x), folded(x))), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(one.abs().max()))
    assert len(norms_of(folded)) == left
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_a_convolution_of_two_norms_is_folded_into_neither():
    shared = nn.Conv2d(3, 3, 1)
    module = lively(nn.Sequential(nn.Sequential(shared, nn.BatchNorm2d(3)), nn.Sequential(shared, nn.BatchNorm2d(3))))
    folded, x = fold_batch_norms(module), torch.randn(1, 3, 4, 4)
    assert len(norms_of(folded)) == 2
    torch.testing.assert_close(folded(x), module(x))


def test_training_mode_is_refused():
    with pytest.raises(ValueError, match="eval"):
        fold_batch_norms(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))


def test_what_does_not_change_is_shared():
    network = little_network()
    folded = fold_batch_norms(network)
    assert folded.head.scores.weight is network.head.scores.weight
    assert folded.pictures.out.bias is network.pictures.out.bias
    assert norms_of(folded) == ["fusion.norm"]  # behind a sum with weights that are not always there
    assert set(norms_of(network)) > {"fusion.norm"}


@pytest.mark.parametrize("habits", ["official", "correct"])
@torch.no_grad()
def test_folded_fusionocc_is_equal(habits):
    network = golden_model(habits)
    batch = random_batch(network.config, cameras=2)
    one, other = network(batch), fold_batch_norms(network)(batch)
    for name in ("logits_BKXYZ", "depth_logits_BNDhw", "seg_logits_BNKhw"):
        expected = getattr(one, name)
        torch.testing.assert_close(getattr(other, name), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("present", [(True, True), (True, False), (False, True), (False, False)])
@torch.no_grad()
def test_labels_of_the_folded_network_are_those_of_the_scores(present):
    cameras, lidar = present
    network, batch = little_network(), little_batch()
    batch = replace(
        batch,
        camera_present_BN=torch.full((2, 4), cameras),
        lidar_present_B=torch.tensor([lidar, lidar]),
    )
    outputs = network(batch)
    folded = fold_batch_norms(network)
    found = folded.label(batch, confidence=True)
    torch.testing.assert_close(folded(batch).logits_BKXYZ, outputs.logits_BKXYZ, rtol=1e-3, atol=1e-4)
    labels, confidence = decode(outputs.logits_BKXYZ, confidence=True)
    assert (found.labels_BXYZ[0].numpy() == labels).mean() > 0.9999
    assert np.abs(found.confidence_BXYZ[0].numpy().astype(int) - confidence).max() <= 1
    assert found.observed_B.tolist() == outputs.observed_B.tolist()
    assert found.labels_BXYZ.shape == outputs.logits_BKXYZ[:, 0].shape
    assert folded.label(batch, confidence=False).confidence_BXYZ is None


@pytest.mark.parametrize("columns", [1, 999, 1000, 2345])
def test_labels_of_columns_agree_with_their_reference(columns):
    torch.manual_seed(columns)
    hidden, scores = nn.Linear(7, 9), nn.Linear(9, 5 * 4)
    parts = [torch.randn(columns, 3), torch.randn(columns, 4)]
    labels, sure = column_labels(parts, hidden, scores, 4, confidence=True)
    expected, probability = column_labels_reference(parts, hidden, scores, 4)
    assert labels.shape == (5, columns)
    assert (labels == expected).float().mean() > 0.999
    assert (sure.int() - probability.int()).abs().max() <= 1
    assert torch.equal(column_labels(parts, hidden, scores, 4, confidence=False)[0], labels)


def test_first_of_equal_classes_wins_and_labels_stay_classes():
    hidden, scores = nn.Linear(2, 3), nn.Linear(3, 2 * 6)
    nn.init.zeros_(scores.weight), nn.init.zeros_(scores.bias)
    assert not column_labels([torch.randn(5, 2)], hidden, scores, 6, confidence=False)[0].any()
    nan = column_labels([torch.full((5, 2), torch.nan)], hidden, scores, 6, confidence=False)[0]
    assert nan.max() < 6


@pytest.mark.parametrize(("widths", "classes"), [((2, 2), 4), ((3, 4), 3), ((), 4)])
def test_parts_that_do_not_fit_are_refused(widths, classes):
    with pytest.raises(ValueError, match="column_labels"):
        column_labels([torch.zeros(2, w) for w in widths], nn.Linear(7, 3), nn.Linear(3, 8), classes, confidence=True)


def centre_of_influence(network, size, place):
    """(row, column) of the pixels that feature ``place`` depends on, for positive weights and inputs."""
    picture = torch.ones(1, 3, *size, requires_grad=True)
    network(picture)[0, :, place[0], place[1]].sum().backward()
    weight = picture.grad[0].abs().sum(dim=0)
    places = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in size), indexing="ij")
    return [float((axis * weight).sum() / weight.sum()) for axis in places]


class Averages(nn.Module):
    """What halvings by odd kernels do to places, as in a ResNet of stride 16 and 32, without its weights."""

    def __init__(self, times):
        super().__init__()
        self.halve = nn.Sequential(*(nn.AvgPool2d(3, stride=2, padding=1) for _ in range(times)))

    def forward(self, x):
        return self.halve(x)


def test_features_of_odd_kernels_are_brought_to_the_middles_of_their_cells():
    moved, size = pixels_off_middle(ResNetConfig()), (256, 256)
    assert moved == 8
    assert pixels_off_middle(little_config().image_backbone) == 0

    def shifted(x):
        return nn.functional.pad(x, (-moved, moved, -moved, moved))

    def fine(x):
        return Averages(4)(shifted(x))

    def coarse(x):
        return doubled(Averages(5)(shifted(x)), on_cells=True)

    for network in (fine, coarse):
        for place in ((8, 8), (6, 10)):
            middle = [16 * i + 7.5 for i in place]
            assert np.abs(np.subtract(centre_of_influence(network, size, place), middle)).max() <= 0.51
    assert centre_of_influence(Averages(4), size, (8, 8))[0] == pytest.approx(128, abs=0.1)  # not 135.5
