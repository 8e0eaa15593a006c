"""A run that is killed at any moment goes on bit by bit as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from toy_training import TOY_CONFIG, CheckpointConfig, ToySource, make_trainer, train_in_a_process, train_toy, variant

from fusionocc_core.engine.run_folder import RunFolder, load_checkpoint

KILLS = 20
BALLAST = 1_000_000
"""Floats that make a checkpoint take some milliseconds to write, so that kills hit the middle of it."""


def comparable_log(out):
    """The log without times and memory."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    timing = {"time", "step_s", "waited_for_data_s", "ram_mb"}
    return [{key: value for key, value in line.items() if key not in timing} for line in lines]


def assert_same_state(a, b):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same_state(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same_state(one, other)
    else:
        assert a == b


def test_kill_9_at_random_moments_changes_nothing(tmp_path, spawner):
    config = variant(epochs=14, checkpoints=CheckpointConfig(every_steps=1, keep=2))
    train_toy(tmp_path / "whole", config, ballast=BALLAST)
    out, draw = tmp_path / "killed", random.Random(5)
    torn = kills = 0
    progress = set()
    while kills < KILLS:
        options = {"ballast": BALLAST, "source": ToySource(pause=0.002)}
        process = spawner.Process(target=train_in_a_process, args=(0, 1, str(out), config, options))
        process.start()
        wait_for_a_write(out, process, writes=draw.choice([1, 2, 3, 4]))
        time.sleep(draw.uniform(0, 0.02))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
        assert process.exitcode == -signal.SIGKILL, "the run ended before it was killed: make it longer"
        torn += bool(list((out / "checkpoints").glob(".*.part")))
        for file in (out / "checkpoints").glob("step-*.pt"):  # every file under its own name is whole
            progress.add(load_checkpoint(file)["step"])
    assert torn >= 3, f"only {torn} of {kills} kills hit the middle of a write"
    assert len(progress) > 8, f"the killed runs went through {sorted(progress)} only"
    train_toy(out, config, ballast=BALLAST)
    assert comparable_log(out) == comparable_log(tmp_path / "whole")
    files = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "whole/checkpoints").iterdir())
    for name in files:
        assert_same_state(
            load_checkpoint(out / "checkpoints" / name), load_checkpoint(tmp_path / "whole/checkpoints" / name)
        )


def wait_for_a_write(out, process, writes):
    """Until the process has begun to write its n-th checkpoint."""
    begun, last, deadline = 0, None, time.monotonic() + 30
    while begun < writes:
        assert process.is_alive(), "the run ended by itself"
        assert time.monotonic() < deadline, "no checkpoint within 30 s"
        for partial in (out / "checkpoints").glob(f".step-*.{process.pid}.part"):
            if partial.name != last:
                begun, last = begun + 1, partial.name
        time.sleep(0.0005)


def test_one_resume_is_exact_in_every_part(tmp_path):
    """Optimizer, averages, generators, best, log: compared after a stop in the middle."""
    whole = train_toy(tmp_path / "whole")
    first = make_trainer(tmp_path / "parts")
    stop_after(first, 6)
    train_toy(tmp_path / "parts")
    assert comparable_log(tmp_path / "parts") == comparable_log(tmp_path / "whole")
    last = f"checkpoints/step-{whole.step:08d}.pt"
    assert_same_state(load_checkpoint(tmp_path / "parts" / last), load_checkpoint(tmp_path / "whole" / last))


@pytest.mark.parametrize("workers", [0, 2])
def test_worker_processes_change_nothing(tmp_path, workers):
    config = variant(epochs=1, workers=workers)
    trainer = train_toy(tmp_path / "run", config)
    expected = train_toy(tmp_path / "reference", variant(epochs=1))
    assert_same_state(dict(trainer.model.state_dict()), dict(expected.model.state_dict()))


def stop_after(trainer, step):
    """Train until a step, then let the process "die" right after what it has on the disk."""

    class Died(Exception):
        pass

    take = trainer._optimizer_step

    def dying(examples, stop):
        if trainer.step == step:
            raise Died
        return take(examples, stop)

    trainer._optimizer_step = dying
    with pytest.raises(Died):
        trainer.fit()
    trainer.recorder.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_before_they_stop(tmp_path, number):
    trainer = make_trainer(tmp_path / "run")
    take = trainer._optimizer_step

    def interrupted(examples, stop):
        if trainer.step == 3:
            os.kill(os.getpid(), number)
        return take(examples, stop)

    trainer._optimizer_step = interrupted
    assert trainer.fit() == number
    trainer.recorder.close()
    assert RunFolder(tmp_path / "run").steps()[-1] == trainer.step == 5  # asked for during step 4, seen in step 5
    resumed, whole = train_toy(tmp_path / "run"), train_toy(tmp_path / "whole")
    assert_same_state(dict(resumed.model.state_dict()), dict(whole.model.state_dict()))
    assert comparable_log(tmp_path / "run") == comparable_log(tmp_path / "whole")


def test_ctrl_c_reaches_workers_too_and_still_saves(tmp_path):
    """A terminal sends SIGINT to every process of the run at once."""
    program = (
        "import sys; from pathlib import Path; from toy_training import *\n"
        "if __name__ == '__main__':\n"
        "    trainer = make_trainer(Path(sys.argv[1]), variant(workers=1, epochs=400), source=ToySource(pause=0.02))\n"
        "    sys.exit(128 + trainer.fit())\n"
    )
    script = tmp_path / "run.py"
    script.write_text(program)
    paths = os.pathsep.join(str(path) for path in (Path(__file__).parent, Path(__file__).resolve().parents[2]))
    run = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    log = tmp_path / "run/log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and len(log.read_bytes().splitlines()) >= 3):
        assert run.poll() is None, run.stderr.read()
        assert time.monotonic() < deadline, "no step within two minutes"
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 128 + signal.SIGINT, errors
    assert "Traceback" not in errors
    logged = [entry["step"] for entry in comparable_log(tmp_path / "run")]
    assert RunFolder(tmp_path / "run").steps()[-1] == logged[-1] < 2000


def test_the_newest_and_the_best_checkpoints_are_kept(tmp_path):
    qualities = iter([0.1, 0.9, 0.3, 0.2])
    train_toy(
        tmp_path, variant(checkpoints=CheckpointConfig(every_steps=100, keep=1)),
        evaluate=lambda model: {"quality": next(qualities)}, best_metric="quality",
    )  # fmt: skip
    assert RunFolder(tmp_path).steps() == [10, 20]  # the best of epoch 2, and the last
    assert load_checkpoint(tmp_path / "checkpoints/step-00000020.pt")["best"] == {"value": 0.9, "step": 10.0}


def test_a_damaged_checkpoint_is_named_with_the_way_out(tmp_path):
    train_toy(tmp_path)
    newest = tmp_path / "checkpoints/step-00000020.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"step-00000020\.pt: damaged .* delete this file"):
        make_trainer(tmp_path)
    newest.unlink()
    assert make_trainer(tmp_path).step == 18


def test_a_folder_has_one_run_at_a_time(tmp_path):
    first = RunFolder(tmp_path)
    with pytest.raises(ValueError, match="another process is training into this folder"):
        RunFolder(tmp_path)
    first.close()
    RunFolder(tmp_path).close()


def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    config = TOY_CONFIG
    trainer = make_trainer(tmp_path, config)
    save = torch.save

    def full(state, file):
        if state["step"] == 9:
            file = Overflowing(file)
        save(state, file)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"step-00000009\.pt could not be written: No space left.*same command again"):
        trainer.fit()
    trainer.recorder.close()
    monkeypatch.setattr(torch, "save", save)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000003.pt",
        "step-00000006.pt",
    ]
    resumed, whole = train_toy(tmp_path, config), train_toy(tmp_path / "whole", config)
    assert_same_state(dict(resumed.model.state_dict()), dict(whole.model.state_dict()))


class Overflowing:
    """A file on a disk with a kilobyte left."""

    def __init__(self, file):
        self.file, self.written = file, 0

    def write(self, data):
        self.written += len(data)
        if self.written > 1024:
            raise OSError(28, "No space left on device")
        return self.file.write(data)

    def flush(self):
        self.file.flush()


def test_a_disk_too_small_is_told_before_the_first_step(tmp_path, monkeypatch):
    import shutil

    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real._replace(free=20_000))
    with pytest.raises(OSError, match=r"0\.0 GB free, but the checkpoints of this run"):
        make_trainer(tmp_path, ballast=100_000)
