"""What is around the work of a configured node: services, what it waits for after its start, its memory."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fusionocc_ros.convert import stamp_to_ns
from fusionocc_ros.services import Services
from fusionocc_ros.snapshots import SnapshotFolder
from fusionocc_ros.tf_store import TransformError
from fusionocc_ros.waiting import StartUp, missing_inputs

if TYPE_CHECKING:
    from rclpy.lifecycle import LifecycleNode

    from fusionocc_ros.inputs import Inputs
    from fusionocc_ros.parameters import NodeParameters
    from fusionocc_ros.publishers import Outputs

MIB = 2**20


class Operation:
    """Services, and a look at what is missing until the first result is out.

    Args:
        node: to offer services with.
        parameters: of the node.
        inputs: what has come so far.
        outputs: the last result.
        forget: forgets earlier keyframes.

    Raises:
        ValueError: snapshot.folder is not a folder that can be written.
    """

    def __init__(
        self,
        node: LifecycleNode,
        parameters: NodeParameters,
        *,
        inputs: Inputs,
        outputs: Outputs,
        forget: Callable[[], None],
    ) -> None:
        self._node, self._parameters, self._inputs = node, parameters, inputs
        snapshots = SnapshotFolder(parameters.snapshot_folder, parameters.snapshot_most_files)
        snapshots.check()
        self._services = Services(node, outputs, snapshots, forget)
        self._start_up: StartUp | None = None
        self._published_before = 0

    def activate(self, published: int) -> None:
        """Begin to look; ``published`` results have been before."""
        self._start_up, self._published_before = StartUp(self._node.get_logger().info), published

    def look(self, published: int) -> None:
        """Say what is missing, if that has changed."""
        if self._start_up is not None and not self._start_up.done:
            self._start_up.look(self._missing(), published=published > self._published_before)

    def _missing(self) -> tuple[str, ...]:
        parameters, inputs = self._parameters, self._inputs
        topics = {camera.name: camera.image_topic for camera in parameters.cameras}
        topics |= {lidar.name: lidar.topic for lidar in parameters.lidars}
        infos = {camera.name: inputs.infos.get(camera.name, 0.0) for camera in parameters.cameras}
        frames = {str(info.header.frame_id): stamp_to_ns(info.header.stamp) for info in infos.values() if info}
        unheard = tuple(name for name, silence in inputs.silence_s().items() if math.isinf(silence))
        if parameters.rig_file:
            infos, frames = {}, {}
        return missing_inputs(
            unheard=unheard,
            topics={name: self._node.resolve_topic_name(topic) for name, topic in topics.items()},
            publishers=self._node.count_publishers,
            no_info=() if parameters.rig_file else tuple(name for name, info in infos.items() if info is None),
            no_place=()
            if parameters.rig_file
            else tuple(f for f, stamp in frames.items() if not self._known(f, stamp)),
            base_frame=parameters.base_frame,
        )

    def _known(self, frame: str, stamp_ns: int) -> bool:
        try:
            self._inputs.transforms.lookup(frame, self._parameters.base_frame, stamp_ns)
        except TransformError:
            return False
        return True

    def close(self) -> None:
        """Take the services down."""
        self._services.close()


def memory_mib() -> dict[str, float]:
    """Memory of this process: "resident", and "CUDA" where PyTorch has used it. MiB."""
    out: dict[str, float] = {}
    statm = Path("/proc/self/statm")
    if statm.is_file():
        import resource

        out["resident"] = int(statm.read_text().split()[1]) * resource.getpagesize() / MIB
    torch = sys.modules.get("torch")  # not loaded for its sake
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        out["CUDA"] = torch.cuda.memory_allocated() / MIB
    return out
