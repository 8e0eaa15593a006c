"""Training on two nodes: two torchrun agents on this machine, each with a copy of its own part of the data alone."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from labelled_sample_tree import write_labelled_tree
from small_recipes import small_sharded
from test_killed_runs import stop_after
from toy_training import TOY_CONFIG, make_trainer

from fusionocc_core.engine.distributed import World, joined_world
from fusionocc_core.engine.session import open_frames, start_training
from fusionocc_core.engine.shard_files import shard_files

ROOT = Path(__file__).resolve().parents[2]
TRAIN = str(ROOT / "training" / "train.py")
RECIPES = Path(__file__).parent / "small_recipes.py"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_node(node, port, data, out):
    """A torchrun agent of one process. Its node rank is not its shard: a rendezvous may number nodes as it likes."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(1 - node)),
        *("--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(port)),
        *(TRAIN, f"{RECIPES}:small_sharded", "--data", str(data), "--out", str(out), "--device", "cpu"),
        *("--shard", str(node)),
    ]
    return subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_labelled_tree(tmp_path_factory.mktemp("whole") / "data").root


@pytest.fixture(scope="module")
def parts(whole, tmp_path_factory):
    """The files that each node needs, copied to a folder of its own."""
    recipe = small_sharded()
    frames = open_frames(whole, recipe.model.inputs, split=recipe.data.train_split, version=None)
    folders = []
    for shard in range(2):
        folder = tmp_path_factory.mktemp(f"node{shard}")
        for name in shard_files(frames, recipe, shard):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(whole / name, folder / name)
        folders.append(folder)
    labels = [{path.name for path in (folder / "gts").glob("*/*")} for folder in folders]
    assert [len(names) for names in labels] == [2, 2]
    assert not labels[0] & labels[1]
    with pytest.raises(ValueError, match="--shard 2: expected 0 to 1"):
        shard_files(frames, recipe, 2)
    return folders


def told(out, steps):
    lines = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [(line["loss"], line["grad_norm"]) for line in lines if line["kind"] == "train"][:steps]


@pytest.mark.slow
def test_two_nodes_with_half_the_data_each_equal_one_with_all_until_one_dies(whole, parts, tmp_path):
    port = free_port()
    nodes = [start_node(node, port, parts[node], tmp_path / f"out{node}") for node in range(2)]
    try:
        out = tmp_path / "out1"  # of node rank 0, whose process writes; it holds shard 1
        one = start_training(
            small_sharded(), name="one", data=whole, out=tmp_path / "one", world=World(device=torch.device("cpu"))
        )
        stop_after(one, 3)
        deadline = time.monotonic() + 300
        while not (out / "log.jsonl").exists() or len(told(out, 3)) < 3:
            assert time.monotonic() < deadline
            assert nodes[1].poll() is None, nodes[1].stdout.read()
            time.sleep(0.05)
        for process in (nodes[0].pid, *workers_of(nodes[0].pid)):  # the agent first, which would tell the other
            os.kill(process, signal.SIGKILL)
        said = " ".join(nodes[1].communicate(timeout=120)[0].split())
        assert nodes[1].returncode == 1
        assert "error: process 0 of 2 lost another process of this run: it ended" in said
        assert "it goes on from the last checkpoint" in said
        assert list((out / "checkpoints").glob("step-*.pt"))
    finally:
        for node in nodes:
            for worker in workers_of(node.pid):
                os.kill(worker, signal.SIGKILL)
            node.kill()
            node.wait()
    gradients = told(out, 1), told(tmp_path / "one", 1)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)
    # AdamW divides small gradients by themselves, so that rounding grows from step to step.
    torch.testing.assert_close(told(out, 3), told(tmp_path / "one", 3), rtol=2e-3, atol=1e-3)


def workers_of(pid):
    """Children of a process, which torchrun puts into sessions of their own."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        return [int(child) for child in path.read_text().split()]
    except FileNotFoundError:
        return []


def meet_and_wait(rank, port, answers):
    """A process that joins another and then waits for it."""
    os.environ.update(RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    try:
        with joined_world("cpu", patience=timedelta(seconds=3)) as world:
            world.wait()
            if rank == 1:
                os.kill(os.getpid(), signal.SIGSTOP)
            world.total(torch.ones(1))
    except ConnectionError as error:
        answers.put(str(error))


def test_a_silent_machine_is_waited_for_no_longer_than_the_patience(spawner):
    answers, port = spawner.Queue(), str(free_port())
    processes = [spawner.Process(target=meet_and_wait, args=(rank, port, answers)) for rank in range(2)]
    [process.start() for process in processes]
    said = answers.get(timeout=120)
    processes[1].kill()
    [process.join(60) for process in processes]
    assert "process 0 of 2 lost another process" in said


def train_apart(rank, out, config):
    """Two processes that share no folder."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{out}/meeting", rank=rank, world_size=2)
    world = World(device=torch.device("cpu"), rank=rank, size=2)
    trainer = make_trainer(Path(out) / str(rank), config, world=world)
    begun = trainer.step
    trainer.fit()
    trainer.recorder.close()
    assert begun in (0, trainer.step)
    if begun:
        (Path(out) / f"went-on-{rank}").write_text(str(begun))
    torch.distributed.destroy_process_group()


def test_a_run_goes_on_where_only_the_main_process_sees_its_folder(tmp_path, spawner):
    for _ in range(2):
        (tmp_path / "meeting").unlink(missing_ok=True)
        processes = [spawner.Process(target=train_apart, args=(r, str(tmp_path), TOY_CONFIG)) for r in range(2)]
        [process.start() for process in processes]
        [process.join(120) for process in processes]
        assert [process.exitcode for process in processes] == [0, 0]
    assert not list(tmp_path.glob("1/checkpoints/*"))
    assert [(tmp_path / f"went-on-{rank}").read_text() for rank in range(2)] == ["20", "20"]


def test_one_process_has_no_shard(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ValueError, match="--shard 1: there is one process"), joined_world("cpu", shard=1):
        pass


def place(rank, size, shard, rendezvous, answers):
    os.environ.update(
        RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=rendezvous
    )
    try:
        with joined_world("cpu", shard=shard) as world:
            answers.put((rank, world.shards, world.sample_rank))
    except ValueError as error:
        answers.put((rank, str(error)))


@pytest.mark.parametrize(
    ("shards", "expected"),
    [([1, 0, 1, 0], [(0, 2, 2), (1, 2, 0), (2, 2, 3), (3, 2, 1)]), ([None, None], [(0, 1, 0), (1, 1, 1)])],
)
def test_processes_take_samples_by_shard_whatever_their_ranks(spawner, shards, expected):
    assert sorted(ask(spawner, shards)) == expected


@pytest.mark.parametrize("shards", [[0, 2], [0, None], [0, 0, 1]])
def test_shards_that_leave_data_unread_are_refused(spawner, shards):
    for _, message in ask(spawner, shards):
        assert f"the {len(shards)} processes said {shards}; expected 0, 1, 2" in message


def ask(spawner, shards):
    answers, port = spawner.Queue(), str(free_port())
    processes = [
        spawner.Process(target=place, args=(rank, len(shards), shard, port, answers))
        for rank, shard in enumerate(shards)
    ]
    [process.start() for process in processes]
    found = [answers.get(timeout=60) for _ in shards]
    [process.join(60) for process in processes]
    return found
