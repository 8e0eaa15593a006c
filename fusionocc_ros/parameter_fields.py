"""How a dataclass field says that it is a ROS parameter."""

from __future__ import annotations

from dataclasses import field
from typing import Any

Value = str | bool | int | float | tuple[str, ...]


def parameter(
    default: Value,
    description: str,
    *,
    name: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    live: bool = False,
    read_only: bool = False,
) -> Any:
    """A dataclass field that is a ROS parameter.

    Args:
        default: its type is the parameter's.
        description: one sentence for `ros2 param describe` and the docs.
        name: where it differs from the field's (groups have dots).
        low: smallest value of a number.
        high: largest value of a number.
        choices: the words that are allowed.
        live: a change while the node runs takes effect at once; others are read when the node is configured.
        read_only: nobody on the network may change it; it is set where the node is started, or never.
    """
    limits = {"low": low, "high": high, "choices": choices}
    spec = {"description": description, "name": name, **limits, "live": live, "read_only": read_only}
    return field(default=default, metadata=spec)
