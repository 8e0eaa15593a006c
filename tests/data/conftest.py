"""A tiny data set in nuScenes format for this folder's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from nuscenes_tree import Tree, write_tree


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """Two scenes of four keyframes and one, six cameras, a LiDAR; not to be changed by tests."""
    return write_tree(tmp_path_factory.mktemp("nuscenes"), sweeps=1)


@pytest.fixture
def fresh_tree(tmp_path: Path) -> Callable[..., Tree]:
    """Makes a data set that a test may damage."""
    return lambda **options: write_tree(tmp_path / "nuscenes", **options)
