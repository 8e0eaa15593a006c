"""Log and progress line."""

import json
import mmap
from io import StringIO

import pytest
from rich.console import Console

from fusionocc_core.engine.reporting import JsonLines, ProgressLine, duration, memory, resident_bytes


def test_log_is_cut_to_a_checkpoint_and_to_whole_lines(tmp_path):
    log = JsonLines(tmp_path / "log.jsonl")
    assert log.entries() == []
    for step in range(1, 6):
        log.append({"step": step, "loss": 1 / step})
    with log.path.open("ab") as file:
        file.write(b'{"step": 6, "lo')  # killed in the middle
    assert [entry["step"] for entry in log.entries()] == [1, 2, 3, 4, 5]
    log.cut_after(3)
    log.append({"step": 4, "loss": float("nan"), "more": {"deep": float("inf")}})
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1] == {"step": 4, "loss": "nan", "more": {"deep": "inf"}}


def test_plain_lines_without_a_terminal():
    text = StringIO()
    line = ProgressLine(steps=100, done=0, console=Console(file=text), plain_every=0.0)
    line.start()
    line.step(1, epoch=0.1, loss=2.5, seconds=2.0, samples=8)
    line.step(2, epoch=0.2, loss=1.5, seconds=4.0, samples=8)
    line.step(3, epoch=0.3, loss=1.5, seconds=2.0, samples=8)
    line.stop()
    first, second, third = text.getvalue().splitlines()
    assert first.startswith("step 1/100  epoch 0.10  loss 2.5000  4.00 samples/s  3 min 18 s left  RAM ")
    assert "2.00 samples/s  6 min 32 s left" in second
    assert "2.11 samples/s  6 min 09 s left" in third  # 0.9 * 4 + 0.1 * 2 s a step; the first counts no more


def test_live_line_on_a_terminal():
    text = StringIO()
    line = ProgressLine(steps=10, done=4, console=Console(file=text, force_terminal=True, width=160))
    line.start()
    line.step(5, epoch=0.5, loss=2.5, seconds=2.0, samples=8)
    line.say("epoch 1 done")
    line.stop()
    assert "5/10" in text.getvalue()
    assert "loss 2.5000" in text.getvalue()
    assert "10 s left" in text.getvalue()
    assert "epoch 1 done" in text.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(5.4, "0 min 05 s"), (125, "2 min 05 s"), (7320, "2 h 02 min"), (float("inf"), "?")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_memory_is_that_of_this_process():
    before = resident_bytes()
    # Straight from the system: what the allocator still holds from earlier tests would not show.
    with mmap.mmap(-1, 60_000_000) as block:
        block.write(b"x" * len(block))
        assert resident_bytes() - before > 50e6
        assert memory()["ram_mb"] > 60
