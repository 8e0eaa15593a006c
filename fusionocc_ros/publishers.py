"""What the node publishes about space: ~/occupancy always, ~/markers and ~/voxels only while someone listens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rclpy.qos import QoSHistoryPolicy, QoSProfile, QoSReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import PointCloud2
from visualization_msgs.msg import Marker, MarkerArray

from fusionocc_core.structures import Occupancy
from fusionocc_msgs.msg import SemanticOccupancy
from fusionocc_ros.convert import MarkerMaker, Provenance, occupancy_to_cloud, occupancy_to_message
from fusionocc_ros.output_parameters import SPARSE
from fusionocc_ros.parameters import NodeParameters

if TYPE_CHECKING:
    from rclpy.lifecycle import LifecycleNode

OUTPUT_QOS = QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=5, reliability=QoSReliabilityPolicy.RELIABLE)
"""Of all three: reliable, volatile, the last five."""


class Outputs:
    """The node's publishers."""

    def __init__(self, node: LifecycleNode, parameters: NodeParameters) -> None:
        self._node = node
        self._sparse = parameters.encoding == SPARSE
        self._marker_maker = MarkerMaker(alpha=parameters.markers_alpha, surface_only=parameters.markers_surface_only)
        overridable = QoSOverridingOptions.with_default_policies()

        def publisher(message: type, topic: str):  # type: ignore[no-untyped-def]
            return node.create_lifecycle_publisher(message, topic, OUTPUT_QOS, qos_overriding_options=overridable)

        self._occupancy = publisher(SemanticOccupancy, "~/occupancy")
        self._markers = publisher(MarkerArray, "~/markers") if parameters.publish_markers else None
        self._voxels = publisher(PointCloud2, "~/voxels") if parameters.publish_voxels else None

    def publish(self, occupancy: Occupancy, provenance: Provenance) -> None:
        """Publish one result in every form that is asked for."""
        self._occupancy.publish(occupancy_to_message(occupancy, provenance, sparse=self._sparse))
        if self._markers is not None and self._markers.get_subscription_count():
            self._markers.publish(self._marker_maker(occupancy, provenance.frame_id))
        if self._voxels is not None and self._voxels.get_subscription_count():
            self._voxels.publish(occupancy_to_cloud(occupancy, provenance.frame_id))

    def clear(self) -> None:
        """Take what was drawn off the screens: what is not renewed would look current for ever."""
        if self._markers is not None and self._markers.get_subscription_count():
            self._markers.publish(MarkerArray(markers=[Marker(action=Marker.DELETEALL)]))

    def close(self) -> None:
        """Take the publishers down."""
        for publisher in (self._occupancy, self._markers, self._voxels):
            if publisher is not None:
                self._node.destroy_lifecycle_publisher(publisher)
