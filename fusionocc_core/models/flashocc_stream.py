"""FlashOcc frame by frame, as on a vehicle: what earlier frames left is kept and moved to where the vehicle is now.

``FlashOcc.forward`` computes every earlier keyframe anew; here each is computed once. Legend: B samples, C channels,
Y X cells of the bird's-eye view.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fusionocc_core.layers.stereo import StereoReference
from fusionocc_core.layers.temporal import align_bev
from fusionocc_core.layers.view_transform import cameras_at
from fusionocc_core.models.flashocc import FlashOcc, FlashOccConfig
from fusionocc_core.structures import Batch, InputConfig, Outputs


@dataclass(frozen=True, kw_only=True)
class KeptView:
    """The bird's-eye view of an earlier frame."""

    bev_BCYX: Tensor
    ego2global_B44: Tensor
    """float64: the (augmented) ego frame that it lies in."""


@dataclass(frozen=True, kw_only=True)
class StreamState:
    """What the next frame takes from those before. Holds tensors on the network's device."""

    views: tuple[KeptView, ...]
    """Newest first; as many as the network looks back, fewer at the start."""
    reference: StereoReference | None
    """With stereo: the frame before, its cameras in its own key ego frame."""
    key2global_B44: Tensor
    """float64: the key ego frame of the frame before."""


@dataclass(frozen=True, kw_only=True)
class StreamStep:
    """The answer of one frame, and the state for the next."""

    outputs: Outputs
    state: StreamState


def stream_inputs(config: FlashOccConfig) -> InputConfig:
    """What ``data.pipeline.prepare`` shall make of a frame for ``stream``: the current pictures alone."""
    return replace(config.inputs, camera_history=0)


@torch.no_grad()
def stream(network: FlashOcc, batch: Batch, key2global_B44: Tensor, state: StreamState | None) -> StreamStep:
    """The outputs of one frame from its own pictures and the state that the frame before left. Changes nothing.

    The same as ``network(batch with history)`` where the vehicle stands still. Where it moves, kept views are read
    bilinearly, end where the grid ended then, and do not follow height, roll and pitch (docs/flashocc.md has figures).
    Call it at the pace of the keyframes that the network was trained with, half a second on nuScenes.

    Args:
        network: in evaluation mode.
        batch: the current frame alone (``stream_inputs``).
        key2global_B44: pose of the ego frame that the batch lies in (``data.pipeline.key2global``), float64.
        state: of the frame before; None at the start of a scene, after a jump in time or in localisation: the current
            frame then stands for the missing ones, as ``prepare`` does it.

    Raises:
        ValueError: the batch holds earlier frames, or something does not fit the state.
    """
    _check(network, batch, key2global_B44, state)
    config, cameras = network.config, cameras_at(batch, 0)
    reference = None
    if network.stereo is not None:
        reference = network.reference(batch, 0) if state is None else _reference_now(state, key2global_B44)
    seen = network.see(batch, 0, reference)
    bev_BCYX = network.to_space(seen, cameras)
    ego2global_B44 = key2global_B44 @ torch.linalg.inv(batch.bev_aug_B44.double())
    kept = () if state is None else state.views
    views = [bev_BCYX]
    for view in kept:
        now2earlier_B44 = torch.linalg.inv(view.ego2global_B44) @ ego2global_B44
        views.append(align_bev(view.bev_BCYX, now2earlier_B44, config.grid))
    views += [bev_BCYX] * (config.lifted_frames - len(views))
    kept = (KeptView(bev_BCYX=bev_BCYX, ego2global_B44=ego2global_B44), *kept)
    return StreamStep(
        outputs=network.answer(views, seen),
        state=StreamState(
            views=kept[: config.lifted_frames - 1], reference=seen.reference, key2global_B44=key2global_B44
        ),
    )


def _reference_now(state: StreamState, key2global_B44: Tensor) -> StereoReference:
    """The frame before with its cameras in the current key ego frame."""
    assert state.reference is not None  # checked: the state comes from a network with stereo
    earlier2now_B44 = torch.linalg.inv(key2global_B44) @ state.key2global_B44
    cameras = state.reference.cameras
    cam2keyego_BN44 = (earlier2now_B44[:, None] @ cameras.cam2keyego_BN44.double()).float()
    return replace(state.reference, cameras=replace(cameras, cam2keyego_BN44=cam2keyego_BN44))


def _check(network: FlashOcc, batch: Batch, key2global_B44: Tensor, state: StreamState | None) -> None:
    frames, samples = batch.images_BTNCHW.shape[1], len(batch.images_BTNCHW)
    size = tuple(batch.images_BTNCHW.shape[4:])
    if frames != 1 or size != network.config.inputs.image_size:
        raise ValueError(
            f"stream: the batch holds {frames} frames of pictures of {size} pixels, expected the current one alone, "
            f"{network.config.inputs.image_size}; prepare it with stream_inputs(network.config)"
        )
    if tuple(key2global_B44.shape) != (samples, 4, 4) or key2global_B44.dtype != torch.float64:
        raise ValueError(
            f"stream: key2global_B44 is {key2global_B44.dtype} {tuple(key2global_B44.shape)}, expected float64 "
            f"{(samples, 4, 4)}: float32 is centimetres off at map coordinates"
        )
    if network.training:
        raise ValueError("stream: the network is in training mode; call network.eval() first")
    if state is None:
        return
    known = tuple(state.key2global_B44.shape[:1])
    if known != (samples,) or (state.reference is None) != (network.stereo is None):
        raise ValueError(
            f"stream: the state is of {known[0]} samples {'with' if state.reference else 'without'} stereo, the batch "
            f"has {samples} and the network works {'with' if network.stereo else 'without'}: start with state=None"
        )
    pictures = batch.images_BTNCHW.shape[2] * samples
    if state.reference is not None and len(state.reference.map_MCHW) != pictures:
        raise ValueError(
            f"stream: the frame before had {len(state.reference.map_MCHW) // samples} cameras, this one has "
            f"{pictures // samples}; pictures are matched camera by camera: start with state=None"
        )
