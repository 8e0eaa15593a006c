"""Where Triton kernels can run."""

from __future__ import annotations

import importlib.util
import os


def unavailable(device_type: str) -> str:
    """Why the kernels cannot run on a device; empty where they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: it comes with PyTorch's CUDA builds for Linux, or by `pip install triton`"
    if device_type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the tensors are on {device_type!r}; expected 'cuda' (or TRITON_INTERPRET=1, to try the kernels slowly)"
    return ""
