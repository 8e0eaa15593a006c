"""A short form of `make fuzz`: mutated messages of every type, from the stored seeds, against a node in a process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fuzz import KINDS, SEEDS, run, sample
from mutations import mutate, rng_of
from rclpy.serialization import serialize_message

pytestmark = [pytest.mark.ros, pytest.mark.slow]

MESSAGES = 100
"""Of each type."""


def test_mutations_follow_from_the_seed_and_change_most_messages() -> None:
    for kind in KINDS:
        good = bytes(serialize_message(sample(kind, 0, 10**18, raw_pictures=kind == "Image")))
        numbers = range(0, 120, 6)
        messages = [sample(kind, 0, 10**18, raw_pictures=kind == "Image") for _ in range(2 * len(numbers))]
        again = [mutate(messages.pop(), rng_of(1, kind, n)) for n in numbers]
        made = [[mutate(messages.pop(), rng_of(1, kind, n)) for n in numbers], again]
        assert [len(m) for m in made[0]] == [len(m) for m in made[1]]
        assert sum(m != good for m in made[0]) >= 15, kind
        assert {len(m) == len(good) for m in made[0]} == {True, False}


def test_the_node_outlives_mutated_messages_of_every_type(tmp_path: Path) -> None:
    seed = json.loads(SEEDS.read_text())["seeds"][0]
    scores = run(seed=seed, count=MESSAGES, folder=tmp_path)
    assert [score.kind for score in scores] == list(KINDS)
    assert {score.kind: score.problems for score in scores if score.problems} == {}
    assert all(score.sent == MESSAGES for score in scores)
