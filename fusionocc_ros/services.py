"""The node's own services: a snapshot of the last result, a fresh start of its memory, the colours of the classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from rclpy.parameter import Parameter
from std_srvs.srv import Trigger

from fusionocc_msgs.srv import SaveSnapshot, SetPalette
from fusionocc_ros.palettes import PALETTES
from fusionocc_ros.publishers import Outputs
from fusionocc_ros.snapshots import SnapshotFolder

if TYPE_CHECKING:
    from rclpy.lifecycle import LifecycleNode

SERVICES: dict[str, tuple[type, str]] = {
    "~/save_snapshot": (
        SaveSnapshot,
        "write the last result to a new .npz or .ply in `snapshot.folder`; refused where that parameter is empty",
    ),
    "~/reset_history": (Trigger, "forget all earlier keyframes, as after a jump of the stamps"),
    "~/set_palette": (SetPalette, "choose one of the palettes by name, or give the colour of every class"),
}
"""Topic to type and meaning."""


class Services:
    """Offers the services of SERVICES.

    Args:
        node: to offer them with.
        outputs: holds the last result and the colours.
        snapshots: where snapshots go.
        forget: forgets earlier keyframes.
    """

    def __init__(
        self, node: LifecycleNode, outputs: Outputs, snapshots: SnapshotFolder, forget: Callable[[], None]
    ) -> None:
        self._node, self._outputs, self._snapshots, self._forget = node, outputs, snapshots, forget
        answers = (self._save, self._reset, self._paint)
        self._services = [
            node.create_service(kind, name, answer)
            for (name, (kind, _)), answer in zip(SERVICES.items(), answers, strict=True)
        ]

    def close(self) -> None:
        """Take the services down."""
        for service in self._services:
            self._node.destroy_service(service)
        self._services.clear()

    def _save(self, request: Any, response: Any) -> Any:
        latest = self._outputs.latest
        try:
            if latest is None:
                raise ValueError("there is no result yet")
            occupancy, provenance = latest
            response.message = str(self._snapshots.save(request.name, occupancy, provenance.frame_id))
            response.success = True
        except (ValueError, OSError) as error:
            response.message = str(error)
        return response

    def _reset(self, request: Any, response: Any) -> Any:
        self._forget()
        response.success, response.message = True, "earlier keyframes are forgotten"
        return response

    def _paint(self, request: Any, response: Any) -> Any:
        try:
            response.message = self._set_colors(request)
            response.success = True
        except ValueError as error:
            response.message = str(error)
        return response

    def _set_colors(self, request: Any) -> str:
        if request.palette:
            (result,) = self._node.set_parameters([Parameter("palette", value=str(request.palette))])
            if not result.successful:
                raise ValueError(str(result.reason))
            self._outputs.set_colors(None)
            return f"palettes: {', '.join(PALETTES)}"
        latest = self._outputs.latest
        if latest is None:
            raise ValueError("there is no result yet, so it is not known how many classes there are")
        count = latest[0].label_set.num
        values = np.frombuffer(request.class_colors, dtype=np.uint8)
        if len(values) != 3 * count:
            raise ValueError(
                f"class_colors: {len(values)} bytes for {count} classes; expected three (red, green, blue) a class, or "
                f"a palette by name: {', '.join(PALETTES)}"
            )
        self._outputs.set_colors(tuple((int(r), int(g), int(b)) for r, g, b in values.reshape(-1, 3)))
        return f"{count} colours"
