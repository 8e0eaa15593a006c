"""A vehicle's sensor traffic between two processes over DDS, with the shipped profile and the default QoS."""

from __future__ import annotations

import pytest
from dds_traffic import complete_sets, exchange, summary

pytestmark = [pytest.mark.ros, pytest.mark.slow]

BUSY_S = 0.1
"""A sender that is later than this had to wait for a processor: the machine is too busy to tell anything."""
ATTEMPTS = 3


@pytest.mark.parametrize(("transport", "seconds"), [("raw", 10), ("compressed", 4)])
def test_every_message_arrives_and_every_sweep_gives_a_complete_set(transport: str, seconds: int) -> None:
    told = []
    for _ in range(ATTEMPTS):
        sent, received = exchange(transport, seconds)
        told.append(summary(transport, sent, received, seconds))
        print(told[-1])  # noqa: T201 (shown with -s, and where the test fails)
        if sent["latest_s"] < BUSY_S:
            break
    why = "\n".join(told)
    counts = dict(sent["sent"])
    assert counts == {source: (20 if source == "LIDAR" else 12) * seconds for source in counts}, why
    lidar = counts.pop("LIDAR")
    lost = {name: count - received["pictures"].get(name, 0) for name, count in counts.items()}
    assert received["sweeps"] == lidar, f"{lidar - received['sweeps']} sweeps did not arrive\n{why}"
    assert received["pictures"] == counts, f"pictures that did not arrive: {lost}\n{why}"
    complete, _ = complete_sets(sent, received, seconds)
    assert complete >= 0.99 * 20 * (seconds - 1), f"sets without every camera, or dropped: {received['dropped']}\n{why}"
