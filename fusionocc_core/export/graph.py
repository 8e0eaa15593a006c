"""What the graphs of all networks have in common: their layout, what feeds them, and what comes out.

A graph is a module that takes tensors of fixed shapes and gives labels. A feed turns a Batch into these tensors: it
does what depends on the calibration and what has no fixed shape, and keeps what it has computed while nothing moves.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusionocc_core.structures import Batch

Value = TypeVar("Value")
Head = TypeVar("Head", bound=nn.Module)

KEPT_CALIBRATIONS = 4
"""Calibrations whose tables are kept: one, and those while single cameras are missing."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What fixes the shapes of a graph."""

    cameras: int
    """Of the rig; pictures of absent ones are there, and masked."""
    rows: int = 0
    """FlashFusion: most pairs of a point of the map and a camera that sees it."""
    overlap: int = 0
    """FlashFusion: most cameras that see one point."""
    confidence: bool = False
    """Also give the probability of each label."""
    scatter_free: bool = False
    """FlashOcc: pool by running sums instead of a scatter with addition, which TensorRT leaves to a plugin."""


class Feed(Protocol):
    """A Batch to the tensors that a graph takes, in the graph's order."""

    names: tuple[str, ...]

    def __call__(self, batch: Batch) -> tuple[Tensor, ...]:
        """The tensors of one sample.

        Raises:
            ValueError: the batch does not fit the graph's layout; the message says in what.
        """


def names_of(inputs: type[Any]) -> tuple[str, ...]:
    """The fields of a dataclass of tensors, in order."""
    return tuple(field.name for field in fields(inputs))


def tensors_of(inputs: Any) -> tuple[Tensor, ...]:
    """The tensors of such a dataclass, in order."""
    return tuple(getattr(inputs, name) for name in names_of(type(inputs)))


class Kept(Generic[Value]):
    """The values of the last few keys."""

    def __init__(self, count: int = KEPT_CALIBRATIONS) -> None:
        self._count = count
        self._values: OrderedDict[tuple[object, ...], Value] = OrderedDict()

    def get(self, key: tuple[object, ...], make: Callable[[], Value]) -> Value:
        """The value of a key, made now if it is new; the least recently used one gives way."""
        if key not in self._values:
            self._values[key] = make()
        self._values.move_to_end(key)
        while len(self._values) > self._count:
            self._values.popitem(last=False)
        return self._values[key]


def check_cameras(batch: Batch, layout: Layout, *, fewer: bool) -> None:
    """Check the number of samples and cameras.

    Args:
        batch: what is to be fed.
        layout: of the graph.
        fewer: whether cameras may be missing.

    Raises:
        ValueError: not one sample, or a rig of another number of cameras.
    """
    samples, cameras = batch.depth_BNHW.shape[:2]
    if samples != 1:
        raise ValueError(f"the batch holds {samples} samples; an exported graph takes one at a time")
    if cameras > layout.cameras or (cameras < layout.cameras and not fewer):
        raise ValueError(
            f"the frame has {cameras} cameras, the graph was exported for {layout.cameras}: export again with data of "
            "this rig"
        )


def padded(rows: Tensor, count: int) -> Tensor:
    """As many rows as wanted, the further ones zero."""
    missing = count - len(rows)
    return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) if missing else rows


def heights_last(head: Head, last_layer: str, num_classes: int) -> Head:
    """A copy of a channel-to-height head that gives channel ``class * Z + z`` in the place of ``z * K + class``.

    With the heights last in memory a runtime compares the classes of 16 voxels at once: OpenVINO's argmax over
    neighbouring numbers takes a quarter of all its time otherwise.

    Args:
        head: in inference mode; it stays as it is.
        last_layer: name of the linear layer that gives the scores.
        num_classes: K.
    """
    head = copy.deepcopy(head)
    for parameter in head.get_submodule(last_layer).parameters():
        parameter.data = parameter.data.unflatten(0, (-1, num_classes)).transpose(0, 1).flatten(0, 1).contiguous()
    return head


def labels_of(scores_1ABS: Tensor, num_classes: int, confidence: bool) -> Sequence[Tensor]:
    """Labels uint8 (1, A, B, Z), and with ``confidence`` their probability in 255ths.

    Args:
        scores_1ABS: of the cells of a map, channels as ``heights_last`` makes them.
        num_classes: classes.
        confidence: also give the probability.
    """
    scores_1ABKZ = scores_1ABS.unflatten(3, (num_classes, -1))
    highest_1ABZ, label_1ABZ = scores_1ABKZ.max(dim=3)
    labels = label_1ABZ.to(torch.uint8)
    if not confidence:
        return (labels,)
    share_1ABZ = 1 / (scores_1ABKZ - highest_1ABZ[:, :, :, None]).exp().sum(dim=3)
    return labels, (share_1ABZ * 255).round().to(torch.uint8)


def take(table_RC: Tensor, index: Tensor) -> Tensor:
    """Rows of a table: a plain Gather in every runtime, with indices of 32 bits."""
    return F.embedding(index, table_RC)
