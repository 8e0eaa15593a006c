"""An exported network as a model: what Predictor, evaluation and the ROS node take in place of a network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fusionocc_core.checkpoints import ModelCard
from fusionocc_core.export.artefact import Artefact, TensorSpec, read_artefact
from fusionocc_core.export.graph import Feed
from fusionocc_core.export.networks import make_feed
from fusionocc_core.export.runtimes import Runtime, open_runtime
from fusionocc_core.structures import Batch, LabelOutputs, cameras_present, lidar_present


def load_exported(path: str | Path, runtime: str = "auto", *, threads: int | None = None) -> ExportedModel:
    """A model from a folder that `fusionocc export` wrote.

    Args:
        path: the folder.
        runtime: what shall run it, see runtimes.RUNTIMES; "auto": what it was exported to.
        threads: of the CPU; None: as many as PyTorch uses.

    Raises:
        FileNotFoundError: there is no artefact.
        ValueError: another version wrote it, it was changed, or this cannot run it.
        ModuleNotFoundError: what runs it is not installed.
    """
    artefact = read_artefact(path)
    feed = make_feed(artefact.config, artefact.layout)
    expected = tuple(spec.name for spec in artefact.inputs)
    if feed.names != expected:
        raise ValueError(f"{path}: its graph takes {', '.join(expected)}, this version feeds {', '.join(feed.names)}")
    return ExportedModel(artefact, feed, open_runtime(artefact, runtime, threads=threads))


class ExportedModel:
    """Batch in, LabelOutputs out.

    The part outside of the graph runs where the batch is; where the graph runs, its runtime decides.
    """

    def __init__(self, artefact: Artefact, feed: Feed, runtime: Runtime) -> None:
        inputs = replace(artefact.config.inputs, num_cameras=artefact.layout.cameras)
        self.config: Any = replace(artefact.config, inputs=inputs)  # type: ignore[type-var]
        self.artefact, self.feed, self.runtime = artefact, feed, runtime

    @property
    def card(self) -> ModelCard:
        """Of the network that was exported."""
        return self.artefact.card

    def __call__(self, batch: Batch) -> LabelOutputs:
        """The labels of a batch of one.

        Raises:
            ValueError: the batch does not fit the rig that the network was exported for.
        """
        with torch.no_grad():
            tensors = self.feed(batch)
        for spec, tensor in zip(self.artefact.inputs, tensors, strict=True):
            if tuple(tensor.shape) != spec.shape:
                raise ValueError(
                    f"{spec.name}: {tuple(tensor.shape)}, the graph of {self.artefact.folder} takes {spec.shape}"
                )
        labels, *confidence = (torch.from_numpy(array) for array in self.runtime(tensors))
        observed_B = None
        if self.config.inputs.presence_masks:
            observed_B = lidar_present(batch) | cameras_present(batch).any(dim=1)
        return LabelOutputs(
            labels_BXYZ=labels, confidence_BXYZ=confidence[0] if confidence else None, observed_B=observed_B
        )

    def in_words(self) -> str:
        """What runs it, and what was asked for and is computed in."""
        return f"{self.artefact.precision} by {self.runtime.name}, computes in {self.runtime.computes_in}"

    def check_rig(self, cameras: int) -> None:
        """Check that a rig is that of the artefact.

        Raises:
            ValueError: it has another number of cameras.
        """
        expected = self.artefact.layout.cameras
        if cameras != expected:
            raise ValueError(
                f"{self.artefact.folder}: exported for a rig of {expected} cameras, this one has {cameras}; export "
                "again with data of this rig, or choose its cameras"
            )

    def to(self, device: torch.device) -> ExportedModel:
        """The same: see the class."""
        return self

    def eval(self) -> ExportedModel:
        """The same: it has no other mode."""
        return self


def specs_of(feed: Feed, tensors: tuple[torch.Tensor, ...]) -> tuple[TensorSpec, ...]:
    """What a feed gives, for the artefact's note."""
    return tuple(
        TensorSpec(name=name, dtype=str(t.dtype).removeprefix("torch."), shape=tuple(t.shape))
        for name, t in zip(feed.names, tensors, strict=True)
    )
