"""Changes of parameters while the node runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from fusionocc_ros.parameters import NodeParameters, table


def changed(parameters: NodeParameters, values: Iterable[tuple[str, Any]]) -> NodeParameters:
    """The parameters with some of them changed.

    Args:
        parameters: those that the node was configured with, and changed since.
        values: names and new values; names that are not in the table are left aside.

    Raises:
        ValueError: a parameter that is read when the node is configured, a word that is not one of its choices, or
            values that contradict each other.
    """
    specs = {spec.name: spec for spec in table()}
    new: dict[str, Any] = {}
    for name, value in values:
        spec = specs.get(name)
        if spec is None and name.startswith(("cameras.", "lidars.")):
            raise ValueError(f"{name}: read when the node is configured; deactivate and clean up first")
        if spec is None:
            continue
        if not spec.live:
            raise ValueError(f"{name}: read when the node is configured; deactivate and clean up first")
        if spec.choices and value not in spec.choices:
            raise ValueError(f"{name}: {value!r} is not one of {', '.join(spec.choices)}")
        new[spec.field] = tuple(value) if isinstance(spec.default, tuple) else value
    return replace(parameters, **new) if new else parameters
