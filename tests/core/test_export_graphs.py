"""The graphs answer as the networks do, whatever is absent, and say so where a frame does not fit."""

from dataclasses import replace

import flashocc_cases
import pytest
import torch
from export_cases import (
    CAMERAS,
    absences,
    little_flashocc,
    little_flashocc_batch,
    little_frames,
    lively_network,
    with_absent,
)
from flashfusion_cases import little_batch, little_config, with_cameras

from fusionocc_core.export.flashocc_graph import BLOCK, pool_by_running_sums, pool_by_scatter
from fusionocc_core.export.networks import layout_for, make_feed, make_graph
from fusionocc_core.models.flashocc_presets import panoptic_flashocc_tiny
from fusionocc_core.models.fusionocc_presets import fusionocc_tiny
from fusionocc_core.predictor import decode


def graph_and_feed(network, batches, *, scatter_free=False):
    layout = layout_for(network.config, batches, confidence=True, scatter_free=scatter_free)
    return make_graph(network, layout), make_feed(network.config, layout)


@torch.no_grad()
def assert_same(network, graph, feed, batch):
    logits_BKXYZ = network(batch).logits_BKXYZ
    labels, confidence = decode(logits_BKXYZ, confidence=True)
    best, second = logits_BKXYZ[0].topk(2, dim=0).values
    clear = (best - second > 1e-5).numpy()  # sums in another order may turn what is a tie but for rounding
    of_graph, confidence_of_graph = (output[0].numpy() for output in graph(*feed(batch)))
    assert len(set(labels.flatten().tolist())) > 2, "a constant answer would show nothing"
    assert clear.mean() > 0.9
    assert (of_graph == labels)[clear].all()
    assert abs(confidence_of_graph.astype(int) - confidence).max() <= 1


@pytest.mark.parametrize("case", absences())
def test_flashfusion_graph_is_the_network(case):
    batches, network = little_frames(), lively_network()
    graph, feed = graph_and_feed(network, batches)
    for batch in batches[:2]:
        assert_same(network, graph, feed, with_absent(batch, *absences()[case]))


def test_flashfusion_with_every_part():
    """A finer raster, and residual blocks in every branch, as flashfusion-r50 has them."""
    config = little_config(raster_scale=2, skip_blocks=1, lidar_blocks=2, camera_blocks=1, lift_heights=(0.0, 1.0, 2.0))
    batches, network = little_frames(), lively_network(config)
    graph, feed = graph_and_feed(network, batches)
    assert_same(network, graph, feed, batches[0])
    assert_same(network, graph, feed, with_absent(batches[1], [True, False, True, True], True))


def test_flashfusion_takes_fewer_cameras_and_refuses_more():
    batches, network = little_frames(), lively_network()
    graph, feed = graph_and_feed(network, batches)
    assert_same(network, graph, feed, with_cameras(batches[0], [2, 0]))
    with pytest.raises(ValueError, match="has 5 cameras, the graph was exported for 4"):
        feed(with_cameras(batches[0], [0, 1, 2, 3, 0]))
    with pytest.raises(ValueError, match="2 samples"):
        feed(little_batch(2, CAMERAS))


def test_tables_follow_the_calibration():
    """Those of an earlier frame must not be used for a rig that has moved: that is what costs others accuracy."""
    network, batch = lively_network(), little_frames(1)[0]
    turned = replace(batch, cam2keyego_BTN44=batch.cam2keyego_BTN44.roll(1, dims=2))
    batches = [batch, turned]
    graph, feed = graph_and_feed(network, batches)
    first = feed(batches[0])
    assert all(a is b for a, b in zip(first[5:], feed(batches[0])[5:], strict=True)), "kept while nothing moves"
    assert_same(network, graph, feed, batches[1])
    assert_same(network, graph, feed, batches[0])
    stale = [*feed(batches[1])[:5], *first[5:]]
    with torch.no_grad():
        assert (graph(*stale)[0] != graph(*feed(batches[1]))[0]).any()


def test_more_overlap_than_the_graph_has_room_for():
    batch = little_frames(1)[0]
    network = lively_network()
    _, feed = graph_and_feed(network, [with_cameras(batch, [0, 2])])
    all_forward = batch.cam2keyego_BTN44[:, :, :1].repeat(1, 1, 2, 1, 1)
    with pytest.raises(ValueError, match=r"2 cameras see the same point.*exported for 1"):
        feed(replace(with_cameras(batch, [0, 2]), cam2keyego_BTN44=all_forward))


@pytest.mark.parametrize("scatter_free", [False, True])
def test_flashocc_graph_is_the_network(scatter_free):
    config = flashocc_cases.little_config()
    network, batch = little_flashocc(config), little_flashocc_batch(config)
    graph, feed = graph_and_feed(network, [batch], scatter_free=scatter_free)
    assert_same(network, graph, feed, batch)
    moved = replace(batch, cam2keyego_BTN44=batch.cam2keyego_BTN44.roll(1, dims=2))
    assert_same(network, graph, feed, moved)
    with pytest.raises(ValueError, match="has 2 cameras, the graph was exported for 4"):
        feed(with_cameras(batch, [0, 1]))


def test_pooling_without_scatter_keeps_its_digits():
    """Running sums over everything lose digits; over blocks they do not, also where cells reach over several."""
    generator = torch.Generator().manual_seed(0)
    cells, depth = 3, torch.rand(1, 5, 8, 64, generator=generator)
    feature = 1 + torch.rand(1, 8, 64, 7, generator=generator)
    cell_I = torch.arange(5 * 8 * 64).clamp(max=5 * 8 * 64 - 1)
    cell_I = torch.where(cell_I < 300, 0, torch.where(cell_I < 301, 1, torch.where(cell_I < 2000, 2, cells)))
    bounds = torch.tensor([0, 300, 301, 2000])
    assert bounds[3] - bounds[2] > 4 * BLOCK
    number_I = torch.arange(5 * 8 * 64)
    tables = [number_I.int(), (number_I % (8 * 64)).int(), bounds[:-1].int(), bounds[1:].int()]
    expected = pool_by_scatter(depth, feature, [cell_I.int()], cells)
    torch.testing.assert_close(pool_by_running_sums(depth, feature, tables, cells), expected, rtol=1e-5, atol=1e-3)
    everywhere = [*tables[:2], torch.tensor([0]).int(), torch.tensor([5 * 8 * 64]).int()]
    all_of_it = pool_by_running_sums(depth, feature, everywhere, 1)
    torch.testing.assert_close(all_of_it, pool_by_scatter(depth, feature, [cell_I * 0], 1), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (fusionocc_tiny(), "FusionOcc cannot be exported: .* sparse convolutions"),
        (panoptic_flashocc_tiny(), "head for centres cannot be exported"),
        (
            replace(
                flashocc_cases.little_config(),
                inputs=replace(flashocc_cases.little_config().inputs, camera_history=1),
            ),
            "1 earlier keyframes cannot be exported",
        ),
    ],
)
def test_what_cannot_be_exported_says_why(config, words):
    with pytest.raises(ValueError, match=words):
        layout_for(config, little_frames(1), confidence=False, scatter_free=False)


def test_no_keyframe_no_layout():
    with pytest.raises(ValueError, match="the shapes of a graph follow from the calibration"):
        layout_for(little_config(), [], confidence=False, scatter_free=False)


def test_a_rig_that_sees_nothing_has_a_layout():
    batch, network = little_frames(1)[0], lively_network()
    up = torch.eye(4).repeat(1, 1, CAMERAS, 1, 1)
    up[..., 2, 3] = 50.0  # 50 m above the ground, looking up
    layout = layout_for(network.config, [replace(batch, cam2keyego_BTN44=up)], confidence=False, scatter_free=False)
    assert layout.rows == 1
    assert layout.overlap == 1
