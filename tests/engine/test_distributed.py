"""Several processes, connected by gloo on this machine."""

import json
from dataclasses import replace

import pytest
import torch
from toy_training import CPU, TOY_CONFIG, ToySource, make_trainer, train_in_a_process, train_toy, variant

from fusionocc_core.engine.distributed import World, joined_world
from fusionocc_core.engine.run_folder import load_checkpoint
from fusionocc_core.engine.sampler import BatchConfig


def run_processes(spawner, function, size, *arguments):
    processes = [spawner.Process(target=function, args=(rank, size, *arguments)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * size


def losses(out):
    lines = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] == "train"]


def test_two_processes_equal_one_that_accumulates(tmp_path, spawner):
    """Batch norms are frozen: their statistics over all processes exist on CUDA only. Dropout is drawn per process."""
    config = variant(freeze_batch_norm=True, batch=BatchConfig(total=4, per_process=1), epochs=8)
    options = {"dropout": 0.0, "source": ToySource(length=11)}  # 11 samples in steps of 4: epochs end within steps
    one = train_toy(tmp_path / "one", config, **options)
    run_processes(spawner, train_in_a_process, 2, str(tmp_path / "two"), config, options)
    assert one.config.batch.accumulate(1) == 2 * one.config.batch.accumulate(2) == 4
    assert len(losses(tmp_path / "one")) == 22
    torch.testing.assert_close(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5, atol=1e-6)
    last = "checkpoints/step-00000022.pt"
    two, expected = (load_checkpoint(tmp_path / name / last) for name in ("two", "one"))
    for group in ("model", "ema"):
        a, b = (state[group] if group == "model" else state[group]["average"] for state in (two, expected))
        for name, tensor in a.items():
            torch.testing.assert_close(tensor, b[name], rtol=1e-4, atol=1e-5)


def test_two_processes_resume_exactly(tmp_path, spawner):
    """With batch norm and dropout on: each process gets its own random state back, and the main one's statistics."""
    whole = variant(batch=BatchConfig(total=4, per_process=1), epochs=8)
    part = replace(whole, checkpoints=replace(whole.checkpoints, every_steps=5))
    run_processes(spawner, train_in_a_process, 2, str(tmp_path / "whole"), whole, {})
    run_processes(spawner, train_until_step_7, 2, str(tmp_path / "part"), part)
    assert sorted(path.name for path in (tmp_path / "part/checkpoints").iterdir()) == ["step-00000005.pt"]
    (tmp_path / "part.rendezvous").unlink(missing_ok=True)
    run_processes(spawner, train_in_a_process, 2, str(tmp_path / "part"), part, {})
    assert losses(tmp_path / "part") == losses(tmp_path / "whole")
    states = [load_checkpoint(tmp_path / name / "checkpoints/step-00000020.pt") for name in ("part", "whole")]
    for name, tensor in states[0]["model"].items():
        assert torch.equal(tensor, states[1]["model"][name]), name


def train_until_step_7(rank, size, out, config):
    from test_killed_runs import stop_after

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{out}.rendezvous", rank=rank, world_size=size)
    stop_after(make_trainer_in(out, config, World(device=CPU, rank=rank, size=size)), 7)
    torch.distributed.destroy_process_group()


def make_trainer_in(out, config, world):
    from pathlib import Path

    return make_trainer(Path(out), config, world=world)


def test_another_number_of_processes_goes_on_and_says_what_differs(tmp_path, spawner, caplog):
    run_processes(spawner, train_until_step_7, 2, str(tmp_path / "run"), TOY_CONFIG)
    trainer = make_trainer(tmp_path / "run")
    assert trainer.step == 6
    assert "saved by 2 processes and goes on with 1" in caplog.text
    trainer.fit()


def sum_and_gather(rank, size, out):
    torch.distributed.init_process_group("gloo", init_method=f"file://{out}", rank=rank, world_size=size)
    world = World(device=CPU, rank=rank, size=size)
    mine = torch.tensor([2**53 + 1, rank])
    assert world.total(mine).tolist() == [3 * (2**53 + 1), 3]  # exact where floats would round
    assert mine.tolist() == [2**53 + 1, rank]
    assert world.gather({"rank": rank}) == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
    norm = torch.nn.BatchNorm1d(2)
    norm.running_mean.fill_(rank + 5)
    world.share_buffers(norm)
    assert norm.running_mean.tolist() == [5, 5]
    world.wait()
    torch.distributed.destroy_process_group()


def test_sums_are_exact_and_everyone_gets_everything(tmp_path, spawner):
    run_processes(spawner, sum_and_gather, 3, str(tmp_path / "rendezvous"))


def test_alone_there_is_nothing_to_exchange():
    world = World(device=CPU)
    assert world.total(torch.tensor([3])).tolist() == [3]
    assert world.gather("x") == ["x"]
    world.wait()


def test_joined_world_reads_what_torchrun_sets(monkeypatch, tmp_path):
    with joined_world("cpu") as world:
        assert (world.rank, world.size, world.is_main) == (0, 1, True)
    for name, value in (("WORLD_SIZE", "1"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    with joined_world("cpu") as world:
        assert world.size == 1
    with pytest.raises(ValueError, match="device='gpu'"), joined_world("gpu"):
        pass


def dropped_lidar(rank, size, out, tree):
    from pathlib import Path

    from small_recipes import small

    from fusionocc_core.engine.sensor_dropout import SensorDropout
    from fusionocc_core.engine.session import start_training

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{out}.rendezvous", rank=rank, world_size=size)
    recipe = small()
    recipe = replace(recipe, data=replace(recipe.data, sensor_dropout=SensorDropout(lidar=0.5, camera=0.4)))
    world = World(device=CPU, rank=rank, size=size)
    trainer = start_training(recipe, name="small", data=Path(tree), out=Path(out), world=world)
    trainer.fit()
    trainer.recorder.close()
    torch.distributed.destroy_process_group()


def test_fusionocc_trains_in_two_processes_with_sensors_missing_in_one(tmp_path, spawner):
    """A process without points or with fewer cameras still has a gradient for every weight; all stay equal."""
    from labelled_sample_tree import write_labelled_tree

    tree = write_labelled_tree(tmp_path / "data")
    run_processes(spawner, dropped_lidar, 2, str(tmp_path / "run"), str(tree.root))
    assert len(losses(tmp_path / "run")) == 4
