"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def goldens() -> Path:
    """Small reference tensors that ship with the repository."""
    return ROOT / "tests" / "goldens"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The optional folder of large test data beside the checkout; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("FUSIONOCC_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip("shared/ is not beside the checkout")
    return folder
