"""Parts of a network at the same time: what they return and raise, and when they run in turn."""

import threading

import pytest
import torch

from fusionocc_core.side_by_side import shares, side_by_side, two_side_by_side


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_jobs_meet_each_other_and_keep_their_order(two_threads):
    meeting = threading.Barrier(2, timeout=20)

    def job(name):
        meeting.wait()  # broken unless both run at once
        return name, torch.get_num_threads(), torch.is_inference_mode_enabled()

    with torch.inference_mode():
        assert side_by_side([lambda: job("a"), lambda: job("b")]) == [("a", 1, True), ("b", 1, True)]
    with torch.no_grad():
        assert two_side_by_side(lambda: job("a")[2], lambda: job("b")[0]) == (False, "b")
    assert torch.get_num_threads() == 2


def test_the_error_of_a_job_comes_out_after_all_have_ended(two_threads):
    ended = []

    def fails():
        raise ValueError("this one")

    with torch.no_grad(), pytest.raises(ValueError, match="this one"):
        side_by_side([fails, lambda: ended.append(True)])
    assert ended == [True]


@pytest.mark.parametrize("why", ["gradients", "autocast", "one thread", "tracing"])
def test_jobs_run_in_this_thread_where_it_is_followed(why, two_threads):
    def where():
        return threading.get_ident()

    if why == "gradients":
        threads = side_by_side([where, where])
    elif why == "autocast":
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            threads = side_by_side([where, where])
    elif why == "one thread":
        torch.set_num_threads(1)
        with torch.no_grad():
            threads = side_by_side([where, where])
    else:
        threads = []

        def traced(x):
            threads.extend(side_by_side([where, where]))
            return x + 1

        with torch.no_grad():
            torch.jit.trace(traced, torch.zeros(1), check_trace=False)
    assert set(threads) == {threading.get_ident()}


@pytest.mark.parametrize("length", [0, 1, 2, 7, 40000])
def test_shares_cover_every_row_once(length, two_threads):
    with torch.no_grad():
        parts = shares(length)
    assert [row for part in parts for row in range(length)[part]] == list(range(length))
    assert len(parts) == min(2, max(length, 1))
    with torch.enable_grad():
        assert shares(length) == [slice(0, length)], "where the jobs run in turn there is nothing to share"
