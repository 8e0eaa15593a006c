"""Runs a module's comparison of Triton kernels in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def interpreted(module: str) -> None:
    """``compare("cpu")`` of a test module, in a process of its own: Triton decides when a kernel is made whether it is
    compiled or interpreted."""
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-c", f"import {module} as t; t.compare('cpu')"],
        cwd=Path(__file__).parent,
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "agree\n", done.stderr
