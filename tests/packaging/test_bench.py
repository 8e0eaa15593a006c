"""Every benchmark command runs in its smallest form, and writes what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.bench import BENCHMARKS, absent, command

ROOT = Path(__file__).resolve().parents[2]
ALL_IN_ONE = """
import json, runpy, sys
sys.path.insert(0, "benchmarks")
for _, script, *options in json.loads(sys.argv[1]):
    sys.argv = [script, *options]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        assert not end.code, (script, end.code)
"""
"""One process for all: importing PyTorch again and again would take longer than the benchmarks."""


def run(words: list[str], seconds: float = 300) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )


SPAWNING = ("presets", "train")
"""Their processes must find them as the main program."""


@pytest.mark.slow
def test_smallest_forms_run(tmp_path):
    assert not [lacking for benchmark in BENCHMARKS for lacking in absent(benchmark)]
    commands = {benchmark.name: command(benchmark, tiny=True, out=tmp_path) for benchmark in BENCHMARKS}
    todo = [words for name, words in commands.items() if name not in SPAWNING]
    done = [run([sys.executable, "-c", ALL_IN_ONE, json.dumps(todo)], seconds=550)]
    done += [run(commands[name]) for name in SPAWNING]
    for one in done:
        assert one.returncode == 0, one.stderr[-3000:]
    assert sum(one.stdout.count("commit ") for one in done) == len(BENCHMARKS), "each prints the machine"
    for name in commands:
        report = json.loads((tmp_path / f"{name}.json").read_text())
        assert report["machine"]["cores"] > 0
        assert len(report) > 1, f"{name}: nothing but the machine"


def test_ops_report_holds_every_op_with_floor_and_memory(tmp_path):
    words = [sys.executable, "benchmarks/ops.py", "--tiny", "--repeats", "1", "--threads", "1"]
    done = run([*words, "--only", "bev_pool", "imgseg", "--out", str(tmp_path / "ops.json")])
    assert done.returncode == 0, done.stderr[-3000:]
    lines = json.loads((tmp_path / "ops.json").read_text())["lines"]
    assert {line["op"] for line in lines} == {"bev_pool", "imgseg"}
    for line in lines:
        assert line["floor_ms"] > 0
        assert line["distance"] > 1 or line["kind"] != "ours", "no op beats its floor"
        assert line["peak_bytes"] is None or line["peak_bytes"] >= 0
    assert {line["kind"] for line in lines} >= {"ours", "baseline"}


def test_candidates_that_differ_are_not_compared():
    """A wrong result must not win."""
    program = """
import sys; sys.path.insert(0, "benchmarks")
import torch
from cases import Case
from floors import Work
from ops import compare
from timing import Candidate
ours = Candidate(label="ours", kind="ours", run=lambda: torch.ones(3))
theirs = Candidate(label="theirs", run=lambda: torch.tensor([1.0, 1.0, 1.1]))
case = Case(op="x", name="a case", candidates=(ours, theirs), work=Work(bytes=1, operations=1), tolerance=0.01)
compare(case)
"""
    done = run([sys.executable, "-c", program])
    assert done.returncode == 1
    assert "a case: theirs differs from ours by 0.1" in done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["benchmarks/ops.py", "--device", "cuda"], "--device cuda: this PyTorch sees no CUDA device"),
        (["benchmarks/ops.py", "--only", "nothing"], "invalid choice: 'nothing'"),
        (["benchmarks/presets.py", "no-such-preset"], "no preset 'no-such-preset'; expected some of"),
        (["benchmarks/presets.py", "--repeats", "0"], "--repeats 0: expected 1 or more"),
    ],
    ids=["no CUDA", "no such op", "no such preset", "no repeats"],
)
def test_wrong_arguments(words, told):
    import torch

    if "cuda" in words and torch.cuda.is_available():
        words = [*words[:-1], "tpu"]
        told = "--device tpu"
    done = run([sys.executable, *words])
    assert done.returncode == 2, done.stdout
    assert told in done.stderr
