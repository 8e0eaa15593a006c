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
    """
    spec = {"description": description, "name": name, "low": low, "high": high, "choices": choices, "live": live}
    return field(default=default, metadata=spec)
