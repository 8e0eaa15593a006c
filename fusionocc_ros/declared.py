"""The parameters on a running node: ``declare`` declares them, ``read`` returns them checked, as a dataclass."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from fusionocc_ros.parameters import (
    COMPRESSED,
    CameraParameters,
    LidarParameters,
    NodeParameters,
    ParameterSpec,
    Value,
    camera_table,
    lidar_table,
    table,
)

if TYPE_CHECKING:
    from rclpy.node import Node


def declare(node: Node) -> None:
    """Declare every parameter on a node, those of its sensors included; what is declared already is left alone.

    Raises:
        rclpy.exceptions.ParameterException: a value from outside has the wrong type or lies outside its range.
    """
    for spec in table():
        _declare(node, spec)
    for spec in _sensor_table(node):
        _declare(node, spec)


def _sensor_table(node: Node) -> list[ParameterSpec]:
    cameras = [spec for camera in _names(node, "camera_names") for spec in camera_table(camera)]
    return cameras + [spec for lidar in _names(node, "other_lidar_names") for spec in lidar_table(lidar)]


def _declare(node: Node, spec: ParameterSpec) -> None:
    from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

    if node.has_parameter(spec.name):
        return
    descriptor = ParameterDescriptor(description=spec.full_description, read_only=spec.read_only)
    if spec.low is not None and spec.high is not None:
        if isinstance(spec.default, float):
            descriptor.floating_point_range = [FloatingPointRange(from_value=spec.low, to_value=spec.high)]
        else:
            descriptor.integer_range = [IntegerRange(from_value=int(spec.low), to_value=int(spec.high))]
    default = list(spec.default) if isinstance(spec.default, tuple) else spec.default
    node.declare_parameter(spec.name, default, descriptor)


def _names(node: Node, parameter: str) -> tuple[str, ...]:
    """The names in a list that may be empty: [] has no type in ROS, and [""] means the same."""
    from rclpy.exceptions import ParameterUninitializedException

    try:
        names = tuple(str(name) for name in node.get_parameter(parameter).value)
    except ParameterUninitializedException:
        return ()
    return () if names == ("",) else names


def read(node: Node) -> NodeParameters:
    """The node's parameters as they are now, checked.

    Raises:
        ValueError: a value that is not one of its choices, or values that contradict each other; names the parameter.
    """
    declare(node)
    lists = {name: _names(node, name) for name in ("camera_names", "other_lidar_names")}
    values = {spec.field: _checked(node, spec) for spec in table() if spec.name not in lists}
    compressed = values["image_transport"] == COMPRESSED
    cameras = tuple(_read_camera(node, name, compressed) for name in lists["camera_names"])
    lidars = tuple(_read_lidar(node, name) for name in lists["other_lidar_names"])
    return NodeParameters(**values, **lists, cameras=cameras, other_lidars=lidars)  # type: ignore[arg-type]


def _read_camera(node: Node, name: str, compressed: bool) -> CameraParameters:
    values = {spec.field: _checked(node, spec) for spec in camera_table(name)}
    values["image_topic"] = values["image_topic"] or f"{name.lower()}/image_rect{'_compressed' if compressed else ''}"
    return CameraParameters(name=name, **values)  # type: ignore[arg-type]


def _read_lidar(node: Node, name: str) -> LidarParameters:
    values = {spec.field: _checked(node, spec) for spec in lidar_table(name)}
    return LidarParameters(name=name, **values)  # type: ignore[arg-type]


def _checked(node: Node, spec: ParameterSpec) -> Value:
    value = node.get_parameter(spec.name).value
    if spec.choices and value not in spec.choices:
        raise ValueError(f"{spec.name}: {value!r} is not one of {', '.join(spec.choices)}")
    return tuple(value) if isinstance(value, list) else value


def known_names(node: Node) -> list[str]:
    """The names of all parameters, those of the node's sensors included."""
    return [spec.name for spec in (*table(), *_sensor_table(node))]


def unknown_names(node: Node) -> dict[str, str]:
    """Parameters set from outside that the node does not have, each with the nearest that it has, or ""."""
    known = known_names(node)
    given = getattr(node, "_parameter_overrides", {})  # rclpy has no public way to ask
    ours = ("use_sim_time", "start_type_description_service")
    unknown = [n for n in given if n not in known and n not in ours and not n.startswith("qos_overrides.")]
    return {n: next(iter(difflib.get_close_matches(n, known, 1)), "") for n in unknown}
