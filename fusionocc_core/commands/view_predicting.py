"""Sources with more to see: what a network makes of the frames of another source, and what answers look like."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from fusionocc_core.commands.view_sources import DataSetSource, PredictionsSource
from fusionocc_core.data.pipeline import key2global
from fusionocc_core.engine.rendered_views import Answering, outputs_of, ray_camera, render_view
from fusionocc_core.predictor import Predictor
from fusionocc_core.structures import Outputs
from fusionocc_core.viz.rendered import RenderedView
from fusionocc_core.viz.view_frame import ViewFrame, ViewSource, latencies_of

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from fusionocc_core.predictor import ModelCard, ModelConfig, OccupancyModel
    from fusionocc_core.structures import Batch, LabelOutputs, Occupancy, SensorFrame


class PredictingSource:
    """Another source, with what a network makes of each of its frames.

    Args:
        source: where the frames come from.
        model: the network.
        device: where it runs.
        render_width: pixels across the pictures of what it sees from each camera; None: no such pictures.
    """

    def __init__(
        self, source: ViewSource, model: OccupancyModel, device: str, *, render_width: int | None = None
    ) -> None:
        self._source, self._width = source, render_width
        self._watched = _Watched(model) if render_width else None
        self._predict = Predictor(self._watched or model, device=device)
        self.name, self.total = source.name, source.total

    def __iter__(self) -> Iterator[ViewFrame]:
        """Predict frame after frame."""
        for frame in self._source:
            if frame.sensors is None:
                raise ValueError(f"{self.name}: a frame without sensors cannot be predicted; give its data with --data")
            prediction = self._predict(frame.sensors)
            shown = replace(frame, prediction=prediction, latencies_s=latencies_of(prediction.timings))
            if self._watched is not None and self._width:
                outputs = self._watched.outputs or outputs_of(prediction)
                config = self._watched.config
                pose = key2global(frame.sensors, config.inputs)
                shown = replace(shown, rendered=rendered(frame.sensors, outputs, config, pose, self._width))
            yield shown


class RenderingSource:
    """Another source, with what its predictions look like from each camera.

    Args:
        source: where the frames come from; those of bags and live topics that lack prediction or sensors stay as they
            are.
        width: pixels across a picture.

    Raises:
        ValueError: a data set, which has no predictions.
    """

    def __init__(self, source: ViewSource, width: int) -> None:
        if isinstance(source, DataSetSource):
            raise ValueError(f"--render: {source.name} has no predictions to look at; predict with --preset NAME")
        self._source, self._width = source, width
        self.name, self.total = source.name, source.total

    def __iter__(self) -> Iterator[ViewFrame]:
        """Render frame after frame.

        Raises:
            ValueError: stored volumes without the data that they were made from.
        """
        for frame in self._source:
            occupancy, sensors = frame.prediction, frame.sensors
            if sensors is None and isinstance(self._source, PredictionsSource):
                raise ValueError(f"--render: {self.name} alone says nothing of cameras; give its data with --data")
            if occupancy is None or sensors is None:
                yield frame
                continue
            pose = _grid2global(occupancy, sensors)
            yield replace(frame, rendered=rendered(sensors, outputs_of(occupancy), occupancy, pose, self._width))


def rendered(
    sensors: SensorFrame, outputs: Outputs, about: Answering, grid2global: NDArray[np.float64], width: int
) -> dict[str, RenderedView]:
    """Distance and classes of an answer from each camera of a frame.

    Args:
        sensors: whose cameras.
        outputs: of one sample.
        about: where the outputs lie, and their classes.
        grid2global: (4, 4) pose of the frame that they lie in.
        width: pixels across a picture.
    """
    return {
        camera.name: render_view(outputs, about, ray_camera(camera), grid2global, width=width)
        for camera in sensors.cameras
    }


def _grid2global(occupancy: Occupancy, sensors: SensorFrame) -> NDArray[np.float64]:
    if occupancy.grid.frame != "lidar":
        return sensors.ego2global
    if sensors.lidar is None:
        raise ValueError(
            "--render: the voxels lie in the LiDAR's frame, and a frame without LiDAR does not say where that is"
        )
    return sensors.lidar.ego2global @ sensors.lidar.lidar2ego


class _Watched:
    """A network that keeps its last scores, which the Predictor makes labels of and drops.

    It runs as it is, without the short ways of network_for_inference, which give labels alone.
    """

    def __init__(self, model: OccupancyModel) -> None:
        self._model = model
        self.outputs: Outputs | None = None
        """The last; None of exported networks that give labels."""

    @property
    def config(self) -> ModelConfig:
        """The network's."""
        return self._model.config

    @property
    def card(self) -> ModelCard:
        """The network's."""
        return self._model.card

    def __call__(self, batch: Batch) -> Outputs | LabelOutputs:
        answer = self._model(batch)
        self.outputs = answer if isinstance(answer, Outputs) else None
        return answer

    def to(self, device: torch.device) -> _Watched:
        """Move it."""
        self._model = self._model.to(device)
        return self

    def eval(self) -> _Watched:
        """Make it predict."""
        self._model = self._model.eval()
        return self
