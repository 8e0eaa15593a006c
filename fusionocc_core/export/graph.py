"""What the graphs of all networks have in common: their layout, what feeds them, and what comes out.

A graph is a module that takes tensors of fixed shapes and gives labels. A feed turns a Batch into these tensors: it
does what depends on the calibration and what has no fixed shape, and keeps what it has computed while nothing moves.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fusionocc_core.structures import Batch

Value = TypeVar("Value")

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


def labels_of(logits_BKXYZ: Tensor, confidence: bool) -> Sequence[Tensor]:
    """Labels uint8 (1, X, Y, Z), and with ``confidence`` their probability in 255ths.

    The classes are brought last, where all our heads have them in memory, so that no runtime has to move the logits.
    """
    logits_BYXZK = logits_BKXYZ.permute(0, 3, 2, 4, 1)
    highest_BYXZ, label_BYXZ = logits_BYXZK.max(dim=-1)
    labels = label_BYXZ.to(torch.uint8).transpose(1, 2)
    if not confidence:
        return (labels,)
    share_BYXZ = 1 / (logits_BYXZK - highest_BYXZ[..., None]).exp().sum(dim=-1)
    return labels, (share_BYXZ * 255).round().to(torch.uint8).transpose(1, 2)


def take(table_RC: Tensor, index: Tensor) -> Tensor:
    """Rows of a table: a plain Gather in every runtime, with indices of 32 bits."""
    return F.embedding(index, table_RC)
