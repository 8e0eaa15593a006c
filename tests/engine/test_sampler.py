"""The order of the samples: nothing twice, nothing forgotten, whatever the processes and wherever a run resumes."""

from collections import Counter
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusionocc_core.engine.sampler import BatchConfig, SampleStream, draw_seed, shard


def stream(length=7, epochs=3, total=4, per_process=1, rank=0, processes=1, seed=1, shards=1):
    batch = BatchConfig(total=total, per_process=per_process, shards=shards)
    return SampleStream(length=length, epochs=epochs, batch=batch, seed=seed, rank=rank, processes=processes)


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 12), st.integers(0, 2**40))
def test_every_sample_once_an_epoch_up_to_the_unfilled_last_step(length, epochs, total, seed):
    if length * epochs < total:
        return
    line = stream(length=length, epochs=epochs, total=total, seed=seed)
    keys = list(chain(*line.step_keys()))
    assert len(keys) == line.steps * total
    assert length * epochs - len(keys) < total
    assert max(Counter(keys).values()) == 1
    for epoch in range(len(keys) // length):  # the whole ones
        assert sorted(key.sample for key in keys if key.epoch == epoch) == list(range(length))


@given(st.integers(1, 30), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
def test_processes_share_each_step_without_overlap(length, epochs, processes, per_process, accumulate):
    total = processes * per_process * accumulate
    if length * epochs < total:
        return
    lines = [stream(length, epochs, total, per_process, rank, processes) for rank in range(processes)]
    batches = [list(line.batches()) for line in lines]
    assert {len(each) for each in batches} == {lines[0].steps * accumulate}
    for number, keys in enumerate(lines[0].step_keys()):
        taken = [b for each in batches for b in each[number * accumulate : (number + 1) * accumulate]]
        assert all(len(batch) == per_process for batch in taken)
        assert sorted(chain(*taken)) == sorted(keys)


@given(st.integers(1, 20), st.integers(1, 4), st.integers(1, 6), st.data())
def test_a_stream_from_the_middle_is_the_tail_of_the_whole(length, epochs, total, data):
    if length * epochs < total:
        return
    line = stream(length=length, epochs=epochs, total=total)
    first = data.draw(st.integers(0, line.steps))
    assert list(line.batches(first)) == list(line.batches())[first * total :]


def test_orders_differ_between_epochs_and_seeds():
    line = stream(length=50)
    assert line.order(0) != line.order(1)
    assert line.order(0) != stream(length=50, seed=2).order(0)
    assert line.order(0) == stream(length=50).order(0)


def test_draw_seeds_do_not_collide_and_fit_torch():
    seeds = {draw_seed(seed, epoch, sample) for seed in range(4) for epoch in range(24) for sample in range(300)}
    assert len(seeds) == 4 * 24 * 300
    assert all(0 <= seed < 2**63 for seed in seeds)


@given(st.integers(0, 50), st.integers(1, 9))
def test_shards_of_an_evaluation_hold_every_index_once(length, processes):
    shards = [shard(length, rank, processes) for rank in range(processes)]
    assert sorted(chain(*shards)) == list(range(length))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@given(st.integers(1, 40), st.integers(1, 3), st.sampled_from([1, 2, 3, 4]), st.sampled_from([1, 2, 4, 6]), st.data())
def test_processes_read_their_own_shard_alone_and_do_the_steps_of_one(length, epochs, shards, processes, data):
    total = data.draw(st.integers(1, 3)) * shards * processes
    if length < shards or length * epochs < total or (shards % processes and processes % shards):
        return
    lines = [stream(length, epochs, total, 1, rank, processes, shards=shards) for rank in range(processes)]
    alone = stream(length, epochs, total, shards=shards)
    assert alone.samples == range(length)
    assert {sample for line in lines for sample in line.samples} == set(range(length))
    assert len({line.samples for line in lines}) == min(shards, processes)
    batches = [list(line.batches()) for line in lines]
    for line, mine in zip(lines, batches, strict=True):
        assert {key.sample for batch in mine for key in batch} <= set(line.samples)
    each = total // processes
    for number, keys in enumerate(alone.step_keys()):
        taken = [b for mine in batches for b in mine[number * each : (number + 1) * each]]
        assert sorted(chain(*taken)) == sorted(keys)
    first = data.draw(st.integers(0, alone.steps))
    assert list(lines[-1].batches(first)) == batches[-1][first * each :]
    seen = Counter(key for keys in alone.step_keys() for key in keys)
    assert max(seen.values()) == 1
    for shard_number in range(shards):
        part = alone.batch.samples(length, shard_number, shards)
        samples = [key for key in seen if key.sample in part]
        for epoch in range(len(samples) // len(part)):
            assert sorted(key.sample for key in samples if key.epoch == epoch) == list(part)


def test_shards_that_do_not_fit_are_told_what_would():
    with pytest.raises(ValueError, match=r"shards=3: expected at least 1, and that total=8 divides by it"):
        BatchConfig(total=8, shards=3)
    with pytest.raises(ValueError, match=r"shards=2 do not divide among 3 processes.*the number of nodes"):
        stream(length=30, total=6, processes=3, shards=2)
    with pytest.raises(ValueError, match="2 samples are too few for shards=4"):
        stream(length=2, epochs=10, total=4, shards=4)


def test_empty_data():
    with pytest.raises(ValueError, match="the data set is empty"):
        stream(length=0)


def test_less_data_than_one_step():
    with pytest.raises(ValueError, match="3 samples in 2 epochs do not fill one step of 8"):
        stream(length=3, epochs=2, total=8)


def test_processes_that_do_not_divide_the_total_are_told_what_would():
    with pytest.raises(ValueError, match=r"8 samples a step do not divide into 3 processes.*Start 1 or 2 or 4 or 8"):
        stream(length=30, total=8, processes=3)
    with pytest.raises(ValueError, match="per_process=0"):
        BatchConfig(per_process=0)


@pytest.mark.parametrize(("epochs", "steps"), [(0.5, 1), (1.0, 3), (2.5, 8)])
def test_a_part_of_an_epoch(epochs, steps):
    line = stream(length=10, epochs=epochs, total=3)
    keys = [key for step in line.step_keys() for key in step]
    assert line.steps == steps
    assert len(keys) == 3 * steps
    assert keys == [key for step in stream(length=10, epochs=9, total=3).step_keys() for key in step][: len(keys)]


def test_no_epoch_at_all():
    with pytest.raises(ValueError, match="epochs=0: expected more than none"):
        stream(epochs=0)
