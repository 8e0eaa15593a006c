"""What the numbers of a benchmark were measured with: every script prints it and writes it beside its numbers."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from rich.console import Console

PACKAGES = ("torch", "numpy", "opencv-python-headless", "spconv", "torch-scatter")

Machine = dict[str, str | int | None]


def machine() -> Machine:
    """Date, commit, processors, threads of PyTorch as they are set now, load, versions."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "usable cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load": f"{os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        **{package: installed(package) for package in PACKAGES},
    }


def in_words(about: Machine) -> str:
    """One line for the terminal."""
    return ", ".join(f"{key} {value}" for key, value in about.items() if value is not None)


def wide_console(least: int = 120) -> Console:
    """A console on which a table of many columns is legible, also where the output is no terminal."""
    return Console(width=max(Console().width, least))


def installed(package: str) -> str | None:
    """Its version, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:  # no git here
        return None
    return described.stdout.strip() or None


def _cpu() -> str | None:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or None


def write_report(path: Path, about: Machine, numbers: dict[str, object]) -> None:
    """Write the numbers as JSON, with the machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": about, **numbers}, indent=1) + "\n")
