"""The node's publishers: each output at its own rate, made only while someone listens."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from rclpy.qos_overriding_options import QoSOverridingOptions

from fusionocc_core.grids import Color
from fusionocc_core.structures import Occupancy
from fusionocc_ros.latency import LatencyPublishers
from fusionocc_ros.occupancy_messages import Provenance
from fusionocc_ros.outputs import OUTPUTS, Output, Result, image_outputs, without_sensors
from fusionocc_ros.palettes import paint
from fusionocc_ros.parameters import NodeParameters

if TYPE_CHECKING:
    from rclpy.lifecycle import LifecycleNode

EARLY = 0.1
"""A result may come this share of a period early: sensors jitter, and a topic at their own rate must not lose every
other message."""


class RateLimit:
    """Lets through at most so many a second on average.

    Args:
        clock: seconds that never run backwards.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next_s = -float("inf")

    def __call__(self, max_rate: float) -> bool:
        """Whether one more may go now; 0 lets everything through."""
        if max_rate <= 0:
            return True
        now_s, period_s = self._clock(), 1 / max_rate
        if now_s < self._next_s - EARLY * period_s:
            return False
        self._next_s = max(self._next_s, now_s - period_s * EARLY) + period_s
        return True


class _Topic:
    """One output with its publisher."""

    def __init__(self, output: Output, publisher: Any) -> None:
        self.output, self.publisher = output, publisher
        self.limit = RateLimit()
        self.last: Any = None
        """The last message, where it is needed to clear it."""

    @property
    def heard(self) -> bool:
        return bool(self.publisher.get_subscription_count())


class Outputs:
    """Publishes results in every form that is asked for.

    Args:
        node: to publish with.
        parameters: of the node.
        on_trouble: told of a result that cannot be shown in some form: kind and why.

    Raises:
        ValueError: debug.messages asks for messages that are not installed.
    """

    def __init__(
        self,
        node: LifecycleNode,
        parameters: NodeParameters,
        on_trouble: Callable[[str, str], None] = lambda kind, why: None,
    ) -> None:
        self._node = node
        self._parameters = parameters
        self._on_trouble = on_trouble
        self._colors: tuple[Color, ...] | None = None
        self._lock = threading.Lock()
        self._latest: tuple[Occupancy, Provenance] | None = None
        self.sent: Counter[str] = Counter()
        """Messages by topic."""
        self.failed: Counter[str] = Counter()
        """Results that could not be shown, by topic."""
        wanted = [*OUTPUTS, *(o for camera in parameters.camera_names for o in image_outputs(camera))]
        self._topics = [_Topic(o, self._publisher(o)) for o in wanted if o.offered(parameters) and _installed(o)]
        self._latency = LatencyPublishers(node, parameters.latency_messages) if parameters.publish_latency else None

    def _publisher(self, output: Output) -> Any:
        overridable = QoSOverridingOptions.with_default_policies()
        return self._node.create_lifecycle_publisher(
            output.load(), output.topic, output.qos, qos_overriding_options=overridable
        )

    @property
    def latest(self) -> tuple[Occupancy, Provenance] | None:
        """The last result, in the colours that it was shown in."""
        with self._lock:
            return self._latest

    def configure(self, parameters: NodeParameters) -> None:
        """Take changed parameters from the next result on; a new palette takes the place of colours that were set."""
        with self._lock:
            if parameters.palette != self._parameters.palette:
                self._colors = None
            self._parameters = parameters

    def set_colors(self, colors: tuple[Color, ...] | None) -> None:
        """Paint with these colours, one a class; None: with those of the palette."""
        with self._lock:
            self._colors = colors

    def publish(self, occupancy: Occupancy, provenance: Provenance) -> None:
        """Publish one result in every form that is asked for."""
        began = time.monotonic()
        with self._lock:
            parameters, colors = self._parameters, self._colors
        painted = _painted(occupancy, parameters.palette, colors)
        with self._lock:
            self._latest = (painted, without_sensors(provenance))
        result = Result(occupancy=painted, provenance=provenance, parameters=parameters)
        for topic in self._topics:
            if topic.heard and topic.output.possible(result) and topic.limit(topic.output.max_rate(parameters)):
                self._send(topic, result)
        if self._latency is not None:
            self._latency.publish(provenance.times, stamp_ns=occupancy.stamp_ns, publishing_s=time.monotonic() - began)

    def _send(self, topic: _Topic, result: Result) -> None:
        name = topic.output.topic
        try:
            message = topic.output.make(result)
        except ValueError as error:
            self.failed[name] += 1
            self._on_trouble(f"output {name}", f"{name} cannot be made: {error}")
            return
        topic.publisher.publish(message)
        topic.last = message if topic.output.clear else None
        self.sent[name] += 1

    def clear(self) -> None:
        """Take what was shown off the screens and out of Nav2: what is not renewed would look current for ever."""
        for topic in self._topics:
            if topic.output.clear is not None and topic.last is not None:
                topic.publisher.publish(topic.output.clear(topic.last))
                topic.last = None

    def close(self) -> None:
        """Take the publishers down."""
        for topic in self._topics:
            self._node.destroy_lifecycle_publisher(topic.publisher)
        self._topics.clear()
        if self._latency is not None:
            self._latency.close()


def _installed(output: Output) -> bool:
    return not output.package or find_spec(output.package) is not None


def _painted(occupancy: Occupancy, palette: str, colors: tuple[Color, ...] | None) -> Occupancy:
    """The same occupancy in other colours; colours for another number of classes are left aside."""
    labels = occupancy.label_set
    if colors is not None and len(colors) == labels.num:
        painted = replace(labels, colors=colors)
    else:
        painted = paint(labels, palette)
    return occupancy if painted is labels else replace(occupancy, label_set=painted)
