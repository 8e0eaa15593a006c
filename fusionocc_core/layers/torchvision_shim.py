"""Imports timm and torchvision on any torch build.

timm imports torchvision unconditionally. The torchvision wheel on PyPI is linked to the CUDA libraries: beside a
CPU-only torch its compiled operators cannot be loaded, and registering the fake kernel of ``torchvision::nms`` then
fails the whole import (pytorch/vision issues 9077 and 9085). Declaring the two missing operator schemas first lets the
unmodified wheel import; the compiled operators themselves (nms, roi_align, torchvision.io) still raise when called.
Nothing here uses them.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

import torch

_declared: torch.library.Library | None = None
"""Kept alive on purpose: the operator schemas vanish with the library object."""


def ensure_torchvision_importable() -> None:
    """Make ``import torchvision`` work beside this torch; does nothing where it works already or is not installed."""
    global _declared
    if _declared is not None or hasattr(torch.ops.torchvision, "nms"):
        return
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return
    for library in sorted(Path(spec.submodule_search_locations[0]).glob("_C*.so")):
        try:
            torch.ops.load_library(str(library))
        except OSError:  # linked to libraries that this torch does not bring
            continue
        return
    _declared = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        _declared.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def import_timm(module: str = "timm") -> ModuleType:
    """Import timm, or one of its modules, with torchvision made importable first.

    Raises:
        ImportError: timm or torchvision is not installed; the message holds the line that installs them.
    """
    ensure_torchvision_importable()
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"the image backbones need timm and torchvision, but {error.name} is missing: "
            "pip install -r requirements/core.txt"
        ) from error
