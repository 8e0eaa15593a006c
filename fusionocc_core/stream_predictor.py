"""Predictor for one drive: what the network remembers goes on from frame to frame."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from fusionocc_core.predictor import Predictor
from fusionocc_core.structures import Batch, InputConfig, LabelOutputs, Outputs


@runtime_checkable
class Remembers(Protocol):
    """A network whose memory can be handed on."""

    def label_next(self, batch: Batch, state: Any, *, confidence: bool) -> tuple[LabelOutputs, Any]:
        """The labels, and what to pass with the next frame; None at the start, or to forget."""


class StreamPredictor(Predictor):
    """As Predictor, for the frames of one drive in their order.

    Of a network that remembers (FlashFusionConfig.memory) the state goes on from call to call, so that earlier
    keyframes need not come with the frame; gaps, jumps and stamps that go back begin anew by themselves. Of any other
    network the answers are those of Predictor. One call at a time. Arguments are those of Predictor.
    """

    _state: Any = None
    _drives = 0

    @property
    def inputs(self) -> InputConfig:
        """What a frame must bring: no keyframes to remember."""
        return replace(super().inputs, remembered=0)

    def forget(self) -> None:
        """Begin anew, as after a change of the calibration; from any thread, also while a frame is worked on."""
        self._drives += 1
        self._state = None

    def _run(self, batch: Batch) -> Outputs | LabelOutputs:
        if not isinstance(self._network, Remembers):
            return super()._run(batch)
        drive = self._drives
        outputs, state = self._network.label_next(batch, self._state, confidence=self.confidence)
        self._state = state if drive == self._drives else None
        return outputs
