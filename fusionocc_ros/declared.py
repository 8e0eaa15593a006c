"""The parameters on a running node: ``declare`` declares them, ``read`` returns them checked, as a dataclass."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from fusionocc_ros.parameters import (
    COMPRESSED,
    CameraParameters,
    NodeParameters,
    ParameterSpec,
    Value,
    camera_table,
    table,
)

if TYPE_CHECKING:
    from rclpy.node import Node


def declare(node: Node) -> None:
    """Declare every parameter on a node, those of its cameras included; what is declared already is left alone.

    Raises:
        rclpy.exceptions.ParameterException: a value from outside has the wrong type or lies outside its range.
    """
    for spec in table():
        _declare(node, spec)
    for camera in _camera_names(node):
        for spec in camera_table(camera):
            _declare(node, spec)


def _declare(node: Node, spec: ParameterSpec) -> None:
    from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

    if node.has_parameter(spec.name):
        return
    descriptor = ParameterDescriptor(description=spec.full_description)
    if spec.low is not None and spec.high is not None:
        if isinstance(spec.default, float):
            descriptor.floating_point_range = [FloatingPointRange(from_value=spec.low, to_value=spec.high)]
        else:
            descriptor.integer_range = [IntegerRange(from_value=int(spec.low), to_value=int(spec.high))]
    default = list(spec.default) if isinstance(spec.default, tuple) else spec.default
    node.declare_parameter(spec.name, default, descriptor)


def _camera_names(node: Node) -> list[str]:
    from rclpy.exceptions import ParameterUninitializedException

    try:
        return [str(name) for name in node.get_parameter("camera_names").value]
    except ParameterUninitializedException:
        # What rclpy makes of an empty list, which has no type.
        raise ValueError("camera_names: expected at least one name, got an empty list") from None


def read(node: Node) -> NodeParameters:
    """The node's parameters as they are now, checked.

    Raises:
        ValueError: a value that is not one of its choices, or values that contradict each other; names the parameter.
    """
    declare(node)
    values = {spec.field: _checked(node, spec) for spec in table()}
    cameras = tuple(_read_camera(node, name, values["image_transport"] == COMPRESSED) for name in _camera_names(node))
    return NodeParameters(**values, cameras=cameras)  # type: ignore[arg-type]


def _read_camera(node: Node, name: str, compressed: bool) -> CameraParameters:
    values = {spec.field: _checked(node, spec) for spec in camera_table(name)}
    values["image_topic"] = values["image_topic"] or f"{name.lower()}/image_rect{'_compressed' if compressed else ''}"
    return CameraParameters(name=name, **values)  # type: ignore[arg-type]


def _checked(node: Node, spec: ParameterSpec) -> Value:
    value = node.get_parameter(spec.name).value
    if spec.choices and value not in spec.choices:
        raise ValueError(f"{spec.name}: {value!r} is not one of {', '.join(spec.choices)}")
    return tuple(value) if isinstance(value, list) else value


def known_names(node: Node) -> list[str]:
    """The names of all parameters, those of the node's cameras included."""
    cameras = [spec.name for camera in _camera_names(node) for spec in camera_table(camera)]
    return [spec.name for spec in table()] + cameras


def unknown_names(node: Node) -> dict[str, str]:
    """Parameters set from outside that the node does not have, each with the nearest that it has, or ""."""
    known = known_names(node)
    given = getattr(node, "_parameter_overrides", {})  # rclpy has no public way to ask
    ours = ("use_sim_time", "start_type_description_service")
    unknown = [n for n in given if n not in known and n not in ours and not n.startswith("qos_overrides.")]
    return {n: next(iter(difflib.get_close_matches(n, known, 1)), "") for n in unknown}
