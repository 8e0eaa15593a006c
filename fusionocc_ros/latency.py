"""How long things take, as topics under the names that Autoware's nodes use. Milliseconds."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fusionocc_ros.convert import ns_to_stamp
from fusionocc_ros.output_parameters import AUTOWARE

if TYPE_CHECKING:
    from rclpy.lifecycle import LifecycleNode

LATENCIES: dict[str, str] = {
    "~/debug/cyclic_time_ms": "from the message before to this one",
    "~/debug/pipeline_latency_ms": "from the sweep's stamp to publishing, on the node's clock",
    "~/debug/processing_time_ms": "from taking the set up to publishing",
    "~/debug/processing_time/preprocess_ms": "reading the messages and preparing the network's input",
    "~/debug/processing_time/inference_ms": "the network",
    "~/debug/processing_time/postprocess_ms": "labels from the network's output, and making and sending the messages",
    "~/debug/processing_time/total_ms": "from the sweep's arrival to publishing, waiting included",
}
"""Topic to meaning."""

AUTOWARE_PACKAGES = ("autoware_internal_debug_msgs", "tier4_debug_msgs")
"""Where Float64Stamped is, newest first."""


def latency_type(messages: str) -> type:
    """The type of the topics: std_msgs/Float64, or Autoware's Float64Stamped.

    Raises:
        ValueError: Autoware's messages are asked for and not installed.
    """
    if messages != AUTOWARE:
        from std_msgs.msg import Float64

        return Float64
    import importlib

    for package in AUTOWARE_PACKAGES:
        try:
            return importlib.import_module(f"{package}.msg").Float64Stamped
        except ModuleNotFoundError:
            continue
    raise ValueError(
        f"debug.messages: autoware needs one of {', '.join(AUTOWARE_PACKAGES)}, and none is installed; use std_msgs"
    )


def latencies_ms(
    times: Mapping[str, float], *, publishing_s: float, pipeline_s: float, cycle_s: float | None
) -> dict[str, float]:
    """Topic to value.

    Args:
        times: seconds, as in Provenance.times.
        publishing_s: what making and sending the messages took.
        pipeline_s: from the sweep's stamp to now.
        cycle_s: since the result before; None at the first, which has no cycle.
    """
    names = list(LATENCIES)
    work = sum(times.get(name, 0.0) for name in ("preparation", "network", "decoding")) + publishing_s
    seconds = (
        cycle_s,
        pipeline_s,
        work,
        times.get("preparation", 0.0),
        times.get("network", 0.0),
        times.get("decoding", 0.0) + publishing_s,
        times.get("total", 0.0) + publishing_s,
    )
    return {name: 1000 * value for name, value in zip(names, seconds, strict=True) if value is not None}


class LatencyPublishers:
    """Publishes the latencies of each result while someone listens.

    Args:
        node: to publish with.
        messages: "std_msgs" or "autoware".

    Raises:
        ValueError: see latency_type.
    """

    def __init__(self, node: LifecycleNode, messages: str) -> None:
        self._node = node
        self._kind = latency_type(messages)
        self._stamped = messages == AUTOWARE
        self._publishers = {topic: node.create_lifecycle_publisher(self._kind, topic, 5) for topic in LATENCIES}
        self._last_s: float | None = None

    def publish(self, times: Mapping[str, float], *, stamp_ns: int, publishing_s: float) -> None:
        """Publish those of one result."""
        now_s = time.monotonic()
        cycle_s, self._last_s = (None if self._last_s is None else now_s - self._last_s), now_s
        clock_ns = self._node.get_clock().now().nanoseconds
        values = latencies_ms(times, publishing_s=publishing_s, pipeline_s=(clock_ns - stamp_ns) / 1e9, cycle_s=cycle_s)
        for topic, value in values.items():
            if self._publishers[topic].get_subscription_count():
                self._publishers[topic].publish(self._message(value, stamp_ns))

    def _message(self, value: float, stamp_ns: int) -> Any:
        if self._stamped:
            return self._kind(stamp=ns_to_stamp(stamp_ns), data=value)
        return self._kind(data=value)

    def close(self) -> None:
        """Take the publishers down."""
        for publisher in self._publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)
        self._publishers.clear()
