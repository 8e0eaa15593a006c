"""A DDS domain and a context of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from synthetic_sensors import World


@pytest.fixture
def domain(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Of this machine alone, and of nobody else on it."""
    from fusionocc_ros.domains import claimed_domain

    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    with claimed_domain() as number:
        yield number


@pytest.fixture
def world(domain: int) -> Iterator[World]:
    """Nodes in the domain."""
    from synthetic_sensors import World

    made = World(domain)
    yield made
    made.close()
