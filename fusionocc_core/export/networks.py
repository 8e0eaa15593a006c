"""Which networks can be exported, each with its graph and what feeds it."""

from __future__ import annotations

from collections.abc import Sequence

from fusionocc_core.export.flashfusion_graph import FlashFusionFeed, FlashFusionGraph, flashfusion_layout
from fusionocc_core.export.flashocc_graph import FlashOccFeed, FlashOccGraph, check_flashocc, flashocc_layout
from fusionocc_core.export.graph import Feed, Layout
from fusionocc_core.models.flashfusion import FlashFusion, FlashFusionConfig
from fusionocc_core.models.flashocc import FlashOcc, FlashOccConfig
from fusionocc_core.models.network import NetworkConfig, OccupancyNetwork
from fusionocc_core.structures import Batch


def layout_for(config: NetworkConfig, batches: Sequence[Batch], *, confidence: bool, scatter_free: bool) -> Layout:
    """The shapes that a network needs for a rig.

    Args:
        config: the network's.
        batches: some frames of the rig, at least one.
        confidence: the graph shall also give the probability of each label.
        scatter_free: it shall do without scatter operators.

    Raises:
        ValueError: the network cannot be exported, or there is no frame.
    """
    check_exportable(config)
    if not batches:
        raise ValueError("no keyframe: the shapes of a graph follow from the calibration of a rig")
    if isinstance(config, FlashFusionConfig):
        return flashfusion_layout(config, batches, confidence=confidence)
    return flashocc_layout(batches, confidence=confidence, scatter_free=scatter_free)


def make_graph(network: OccupancyNetwork, layout: Layout) -> FlashFusionGraph | FlashOccGraph:
    """The graph of a network, in inference mode."""
    check_exportable(network.config)
    if isinstance(network, FlashFusion):
        return FlashFusionGraph(network, layout).eval()
    assert isinstance(network, FlashOcc)
    return FlashOccGraph(network, layout).eval()


def make_feed(config: NetworkConfig, layout: Layout) -> Feed:
    """What turns batches into the inputs of a network's graph."""
    check_exportable(config)
    if isinstance(config, FlashFusionConfig):
        return FlashFusionFeed(config, layout)
    assert isinstance(config, FlashOccConfig)
    return FlashOccFeed(config, layout)


def check_exportable(config: NetworkConfig) -> None:
    """Refuse networks that have no graph of fixed shapes.

    Raises:
        ValueError: says why.
    """
    if isinstance(config, FlashOccConfig):
        check_flashocc(config)
    elif not isinstance(config, FlashFusionConfig):
        name = type(config).__name__.removesuffix("Config")
        raise ValueError(
            f"{name} cannot be exported: its LiDAR branch has sparse convolutions, whose shapes follow from the "
            "points; FlashFusion takes camera and LiDAR and can be (its LiDAR branch is dense), and so can FlashOcc"
        )
