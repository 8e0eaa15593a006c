"""SensorFrame in, Occupancy out: preparation, network, decoding, each timed."""

from __future__ import annotations

import time
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusionocc_core.data.pipeline import prepare
from fusionocc_core.gaussians import cloud_of
from fusionocc_core.grids import LabelSet, VoxelGrid
from fusionocc_core.layers.bfloat16 import cpu_multiplies_bfloat16, with_bfloat16_parts
from fusionocc_core.layers.compiled import compile_parts, new_frame
from fusionocc_core.layers.folding import fold_batch_norms
from fusionocc_core.layers.swin_inference import swin_for_inference
from fusionocc_core.models.panoptic import decode_instances
from fusionocc_core.structures import Batch, InputConfig, LabelOutputs, Occupancy, Outputs, SensorFrame, Timings


class ModelConfig(Protocol):
    """What every network's config says about its input and output."""

    @property
    def inputs(self) -> InputConfig: ...  # noqa: D102
    @property
    def grid(self) -> VoxelGrid: ...  # noqa: D102
    @property
    def label_set(self) -> LabelSet: ...  # noqa: D102


class ModelCard(Protocol):
    """Where a network's weights come from."""

    @property
    def preset(self) -> str: ...  # noqa: D102
    @property
    def trained_on(self) -> str: ...  # noqa: D102


class OccupancyModel(Protocol):
    """A network as load_model returns it, or an exported one as load_exported does."""

    @property
    def config(self) -> ModelConfig: ...  # noqa: D102
    @property
    def card(self) -> ModelCard: ...  # noqa: D102
    def __call__(self, batch: Batch) -> Outputs | LabelOutputs: ...  # noqa: D102
    def to(self, device: torch.device) -> OccupancyModel: ...  # noqa: D102
    def eval(self) -> OccupancyModel: ...  # noqa: D102


@runtime_checkable
class LabelsDirectly(Protocol):
    """A network that finds the labels without making the scores of all voxels first."""

    def label(self, batch: Batch, *, confidence: bool) -> LabelOutputs:
        """The labels, and with ``confidence`` the probability of each."""


@runtime_checkable
class HasBfloat16Parts(Protocol):
    """A network that was found to keep its labels when some of its parts compute in bfloat16."""

    @property
    def bfloat16_parts(self) -> tuple[str, ...]: ...  # noqa: D102


@runtime_checkable
class HasCompiledParts(Protocol):
    """A network with parts whose shapes do not change from frame to frame, and which it calls with nothing else."""

    @property
    def compiled_parts(self) -> tuple[str, ...]: ...  # noqa: D102


@runtime_checkable
class KeepsPictures(Protocol):
    """A network that need not look at the pictures of an earlier keyframe again. The answer is the same."""

    def next_keyframe(self, batch: Batch, kept: Any) -> tuple[Outputs, Any]:
        """The answer, and what to pass with the next keyframe; None at the start."""


PRECISIONS = ("auto", "float32", "bfloat16")


def network_for_inference(model: OccupancyModel, device: torch.device, precision: str) -> OccupancyModel:
    """A copy of a network that computes the same faster: folded norms, Swin blocks for CPUs, bfloat16 where that pays.

    An exported network is given back as it is.

    Args:
        model: in inference mode, on ``device``.
        device: where it runs.
        precision: "auto": bfloat16 on processors that multiply it, in networks that keep their labels with it
            (HasBfloat16Parts); "float32": never; "bfloat16": in any case.

    Raises:
        ValueError: an unknown precision, or bfloat16 for a network that has no parts for it.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}: expected one of {', '.join(PRECISIONS)}")
    can = isinstance(model, torch.nn.Module) and isinstance(model, HasBfloat16Parts) and bool(model.bfloat16_parts)
    if precision == "bfloat16" and not can:
        raise ValueError(
            f"precision='bfloat16': {model.card.preset or type(model).__name__} has no parts that compute in it; "
            "use 'auto' or 'float32'"
        )
    network = fold_batch_norms(model) if isinstance(model, torch.nn.Module) else model
    if device.type == "cpu" and isinstance(network, torch.nn.Module):
        network = swin_for_inference(network)
    wanted = precision == "bfloat16" or (precision == "auto" and device.type == "cpu" and cpu_multiplies_bfloat16())
    if wanted and isinstance(network, torch.nn.Module) and isinstance(network, HasBfloat16Parts):
        return with_bfloat16_parts(network, network.bfloat16_parts)
    return network


def compiled_network(network: OccupancyModel, device: torch.device) -> OccupancyModel:
    """A network for inference whose parts of fixed shapes go through torch.compile (layers.compiled).

    Args:
        network: of network_for_inference; it is changed.
        device: where it runs.

    Raises:
        ValueError: it has no such parts.
    """
    if not (isinstance(network, torch.nn.Module) and isinstance(network, HasCompiledParts)):
        raise ValueError(
            f"compiled=True: {type(network).__name__} has no parts that are known to keep their shapes; FlashFusion "
            "and FlashOcc have; leave compiled=False"
        )
    compile_parts(network, network.compiled_parts, device)
    return network


def pick_device(device: str) -> torch.device:
    """The torch device that "auto", "cpu", "cuda" or "cuda:N" stands for; auto takes CUDA where there is one.

    Raises:
        ValueError: a device that torch does not know, or CUDA where there is none.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device={device!r}: expected auto, cpu, cuda or cuda:N") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device={device!r}: this PyTorch ({torch.__version__}) sees no CUDA device; use device='cpu', "
            "or install a CUDA build of PyTorch and check nvidia-smi"
        )
    return chosen


def decode(logits_BKXYZ: Tensor, confidence: bool) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Labels (X, Y, Z) of the first sample, and the probability of each label, 0..255, where asked for."""
    logits_KXYZ = logits_BKXYZ[0]
    # In the order in which the voxels lie in memory: networks give logits as views, most with the classes last.
    order = sorted((1, 2, 3), key=lambda axis: -logits_KXYZ.stride()[axis])
    back = [order.index(axis) for axis in (1, 2, 3)]
    logits_VK = logits_KXYZ.permute(*order, 0)
    highest_V, label_V = logits_VK.max(dim=-1)
    labels = label_V.to(torch.uint8).permute(back).contiguous().cpu().numpy()
    if not confidence:
        return labels, None
    # The winning class's softmax without the softmax of the others: exp(max - logsumexp).
    probability_V = (highest_V - logits_VK.logsumexp(dim=-1)).exp()
    return labels, (probability_V * 255).round().to(torch.uint8).permute(back).contiguous().cpu().numpy()


def read_labels(
    outputs: Outputs | LabelOutputs, confidence: bool
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """As ``decode``, of whichever kind of outputs.

    Raises:
        ValueError: the confidence is asked for and the network was exported without.
    """
    if isinstance(outputs, Outputs):
        return decode(outputs.logits_BKXYZ, confidence)
    if not confidence:
        return outputs.labels_BXYZ[0].cpu().numpy(), None
    if outputs.confidence_BXYZ is None:
        raise ValueError(
            "the exported network gives no confidence: export it with --confidence, or ask for labels alone"
        )
    return outputs.labels_BXYZ[0].cpu().numpy(), outputs.confidence_BXYZ[0].cpu().numpy()


def hide_unobserved(outputs: Outputs | LabelOutputs, label_set: LabelSet, *arrays: NDArray[np.uint8] | None) -> None:
    """Overwrite labels and confidence of the first sample where no sensor was present: unknown, not free."""
    if outputs.observed_B is None or bool(outputs.observed_B[0]):
        return
    for array, value in zip(arrays, (label_set.unknown, 0), strict=True):
        if array is not None:
            array.fill(value)


class Predictor:
    """Runs a network on one frame at a time.

    Two calls with the same frame give the same answer: where a preset thins points at random, every call draws anew
    from ``seed``. What runs is a copy of the network with the weights as they are now (network_for_inference). One that
    can label voxels without making all scores (LabelsDirectly) is asked for that; the time of the decoding is then part
    of the network's. One that can keep what it saw in the pictures of a keyframe for the next (KeepsPictures) does.

    Args:
        model: a network from load_model, or an exported one from load_exported.
        device: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:N".
        confidence: also return the probability of each voxel's label.
        seed: of the random draws at inference.
        precision: see network_for_inference; "float32" gives the same labels everywhere, up to rounding.
        compiled: see compiled_network. The first frame then takes as long as the compilation.
    """

    def __init__(
        self,
        model: OccupancyModel,
        *,
        device: str = "auto",
        confidence: bool = False,
        seed: int = 0,
        precision: str = "auto",
        compiled: bool = False,
    ) -> None:
        self.device = pick_device(device)
        self.model = model.to(self.device).eval()
        self.confidence = confidence
        self.seed = seed
        self._network = network_for_inference(self.model, self.device, precision)
        self._replays = compiled and self.device.type == "cuda"
        if compiled:
            self._network = compiled_network(self._network, self.device)
        self._kept: Any = None

    @property
    def inputs(self) -> InputConfig:
        """What a frame must bring."""
        return self.model.config.inputs

    def _run(self, batch: Batch) -> Outputs | LabelOutputs:
        network = self._network
        if isinstance(network, KeepsPictures):
            outputs, self._kept = network.next_keyframe(batch, self._kept)
            return outputs
        return (
            network.label(batch, confidence=self.confidence) if isinstance(network, LabelsDirectly) else network(batch)
        )

    @torch.inference_mode()
    def __call__(self, frame: SensorFrame) -> Occupancy:
        """Predict the occupancy around the ego vehicle at the frame's reference time.

        Raises:
            ValueError: the frame does not hold what the network needs; the message names the sensor.
        """
        config = self.model.config
        began = time.perf_counter()
        generator = torch.Generator().manual_seed(self.seed)
        batch = prepare(frame, self.inputs, config.grid, generator, device=self.device)
        prepared = time.perf_counter()
        if self._replays:
            new_frame()
        outputs = self._run(batch)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        computed = time.perf_counter()
        labels, confidence = read_labels(outputs, self.confidence)
        hide_unobserved(outputs, config.label_set, labels, confidence)
        centers = outputs.centers if isinstance(outputs, Outputs) else None
        instances = None if centers is None else decode_instances(centers, labels, config.grid)
        gaussians = outputs.gaussians if isinstance(outputs, Outputs) else None
        return Occupancy(
            labels=labels,
            confidence=confidence,
            instances=instances,
            gaussians=None if gaussians is None else cloud_of(gaussians),
            grid=config.grid,
            label_set=config.label_set,
            stamp_ns=frame.stamp_ns,
            model=self.model.card.preset,
            trained_on=self.model.card.trained_on,
            timings=Timings(
                prepare_s=prepared - began, network_s=computed - prepared, decode_s=time.perf_counter() - computed
            ),
        )
