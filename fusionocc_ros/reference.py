"""The tables of docs/ros.md and the file config/occ.yaml, made from the code.

    python fusionocc_ros/reference.py          writes both; a test holds them equal to the code

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fusionocc_ros.causes import CAUSES
from fusionocc_ros.diagnostic_keys import KEYS, STATUSES
from fusionocc_ros.latency import LATENCIES
from fusionocc_ros.outputs import OUTPUTS, TYPE_NAMES, Output, image_outputs
from fusionocc_ros.parameter_fields import Value
from fusionocc_ros.parameters import OFFICIAL_CAMERAS, ParameterSpec, camera_table, lidar_table, table
from fusionocc_ros.services import SERVICES

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT, CONFIG = ROOT / "docs" / "ros.md", ROOT / "config" / "occ.yaml"

YAML_HEAD = """\
# The node's parameters and their defaults: this file changes nothing. Copy it, keep what you change, and start with
#   ros2 launch fusionocc_ros occ.launch.py params_file:=<copy>
#   occ_node --ros-args --params-file <copy>
# Times are in seconds, lengths in metres. What each parameter means is in docs/ros.md and in `ros2 param describe`.
/**:
  ros__parameters:
"""


def _markdown(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _shown(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def _limits(spec: ParameterSpec) -> str:
    if spec.low is not None and spec.high is not None:
        return f"{spec.low:g} to {spec.high:g}"
    return ", ".join(spec.choices)


def parameter_rows() -> str:
    """Every parameter; those that can be changed while the node runs are marked."""
    rows = [
        (
            f"`{spec.name}`",
            f"`{_shown(spec.default)}`" if _shown(spec.default) else "",
            _limits(spec),
            "yes" if spec.live else "at start" if spec.read_only else "",
            spec.description,
        )
        for spec in [*table(), *camera_table("<NAME>"), *lidar_table("<NAME>")]
    ]
    return _markdown(("parameter", "default", "values", "live", "meaning"), rows)


def cause_rows() -> str:
    """Every cause of a dropped sweep."""
    return _markdown(("cause", "meaning"), [(f"`{cause}`", text) for cause, text in CAUSES.items()])


def type_name(kind: type) -> str:
    """package/kind/Name of a message or service."""
    return "/".join([*kind.__module__.split(".")[:2], kind.__name__])


def _topic_row(output: Output, topic: str) -> tuple[str, ...]:
    kind = TYPE_NAMES.get(topic) or type_name(output.load())
    latched = "transient local, 1" if output.qos.durability.name == "TRANSIENT_LOCAL" else "volatile, 5"
    where = f"; where {output.package} is installed" if output.package else ""
    return f"`{topic}`", kind, latched, output.what + where


def topic_rows() -> str:
    """Every topic that results are published on."""
    rows = [_topic_row(output, output.topic) for output in OUTPUTS]
    rows += [
        _topic_row(output, output.topic.replace("camera_name", "<name>")) for output in image_outputs("camera_name")
    ]
    rows.append(("`/diagnostics`", "diagnostic_msgs/msg/DiagnosticArray", "volatile, 10", "see [below](#diagnostics)"))
    return _markdown(("topic", "type", "durability, depth", "what"), rows)


def latency_rows() -> str:
    """Every topic of latencies."""
    return _markdown(("topic", "milliseconds"), [(f"`{topic}`", what) for topic, what in LATENCIES.items()])


def service_rows() -> str:
    """Every service of our own."""
    rows = [(f"`{name}`", type_name(kind), what) for name, (kind, what) in SERVICES.items()]
    return _markdown(("service", "type", "what"), rows)


def diagnostic_rows() -> str:
    """Every value on /diagnostics."""
    return _markdown(("status", "value", "meaning"), [(status, f"`{key}`", what) for status, key, what in KEYS])


def status_rows() -> str:
    """When each status warns."""
    return _markdown(("status", "warns when"), [(f"`{name}`", when or "never") for name, when in STATUSES.items()])


TABLES: dict[str, Callable[[], str]] = {
    "topics": topic_rows,
    "latencies": latency_rows,
    "services": service_rows,
    "parameters": parameter_rows,
    "statuses": status_rows,
    "diagnostics": diagnostic_rows,
    "causes": cause_rows,
}


def fill(text: str) -> str:
    """The document with every table made anew.

    Raises:
        ValueError: it lacks a table, or names one that does not exist.
    """
    pattern = re.compile(r"(<!-- table: (\w+) -->\n\n?)(.*?)(\n?<!-- end -->)", flags=re.S)
    found = sorted(match.group(2) for match in pattern.finditer(text))
    if found != sorted(TABLES):
        raise ValueError(f"docs/ros.md has the tables {found}, expected each of {sorted(TABLES)} once")
    return pattern.sub(lambda m: f"<!-- table: {m.group(2)} -->\n\n{TABLES[m.group(2)]()}\n<!-- end -->", text)


_EMPTY = '""'


def _yaml_value(value: Value) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(word or _EMPTY for word in value)}]"
    return _EMPTY if value == "" else _shown(value)


def occ_yaml() -> str:
    """config/occ.yaml: every parameter with its default, and the words that it may take."""
    specs = [*table(), *(spec for camera in OFFICIAL_CAMERAS for spec in camera_table(camera))]
    specs.sort(key=lambda spec: spec.name.count(".") > 1)  # stable
    groups: dict[str, list[ParameterSpec]] = {}
    for spec in specs:
        groups.setdefault(spec.name.rpartition(".")[0], []).append(spec)
    lines: list[str] = []
    opened: list[str] = []
    for group, members in groups.items():
        parts = group.split(".") if group else []
        common = 0
        while common < min(len(parts), len(opened)) and parts[common] == opened[common]:
            common += 1
        if common == 0 and lines:
            lines.append("")
        lines += ["  " * (2 + depth) + f"{parts[depth]}:" for depth in range(common, len(parts))]
        opened = parts
        indent = "  " * (2 + len(parts))
        for spec in members:
            lines += [f"{indent}# {', '.join(spec.choices)}"] if spec.choices else []
            lines.append(f"{indent}{spec.name.rpartition('.')[2]}: {_yaml_value(spec.default)}")
    return YAML_HEAD + "\n".join(lines) + "\n"


def main() -> int:
    """Write both files."""
    DOCUMENT.write_text(fill(DOCUMENT.read_text()))
    CONFIG.write_text(occ_yaml())
    return 0


if __name__ == "__main__":
    sys.exit(main())
