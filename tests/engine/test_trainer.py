"""The loop: what a step does, what stops it, what an evaluation must not change."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_training import (
    TOY_CONFIG,
    BatchConfig,
    CheckpointConfig,
    OptimizerConfig,
    ScheduleConfig,
    ToyNet,
    ToySource,
    evaluate_toy,
    make_trainer,
    toy_loss,
    train_toy,
    variant,
)

from fusionocc_core.engine.failures import LossFailure
from fusionocc_core.engine.reporting import resident_bytes
from fusionocc_core.engine.sampler import SampleKey
from fusionocc_core.engine.trainer import TrainConfig

RARELY = CheckpointConfig(every_steps=10_000)


def log(out, kind="train"):
    lines = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def same(a, b):
    return all(torch.equal(tensor, b.state_dict()[name]) for name, tensor in a.state_dict().items())


def test_defaults_are_the_official_recipe():
    config = TrainConfig()
    assert (config.epochs, config.batch.total, config.precision) == (24, 8, "fp32")
    assert config.optimizer == OptimizerConfig(lr=5e-5, weight_decay=1e-2, betas=(0.9, 0.999), clip_norm=5.0)


def test_first_steps_by_hand(tmp_path):
    """Two steps of the loop against AdamW, clipping and warm-up written out."""
    config = variant(
        epochs=1,
        ema=None,
        optimizer=OptimizerConfig(lr=1e-2, clip_norm=0.5),
        schedule=ScheduleConfig(warmup_steps=4, decay="constant"),
    )
    source = ToySource(length=4)
    trainer = make_trainer(tmp_path, config, source=source, dropout=0.0)
    model = ToyNet(dropout=0.0)
    model.load_state_dict(trainer.model.state_dict())
    trainer.fit()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=1e-2)
    norms = []
    for step, keys in enumerate(trainer.stream.step_keys()):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 / 3 + 2 / 3 * step / 4)
        optimizer.zero_grad()
        for key in keys:
            examples = source.examples([key])
            (toy_loss(model(examples.batch), examples.targets).total / 2).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)))
        optimizer.step()
    assert min(norms) > 0.5  # clipping took place
    assert [line["grad_norm"] for line in log(tmp_path)] == pytest.approx(norms)
    assert [line["lr"] for line in log(tmp_path)] == pytest.approx([1e-2 / 3, 5e-3])
    assert same(model, trainer.model)


def test_accumulation_equals_one_large_batch(tmp_path):
    config = variant(freeze_batch_norm=True, batch=BatchConfig(total=4, per_process=1))
    large = replace(config, batch=BatchConfig(total=4, per_process=4))
    one, other = (
        train_toy(tmp_path / name, c, dropout=0.0, source=ToySource(length=8))
        for name, c in (("accumulated", config), ("large", large))
    )
    for name, tensor in one.model.state_dict().items():
        torch.testing.assert_close(tensor, other.model.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_log_has_every_term_once_a_step(tmp_path):
    train_toy(tmp_path)
    lines = log(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, 21))
    for line in lines:
        assert line["loss"] == pytest.approx(line["square"] + 0.1 * line["absolute"])
        assert line["step_s"] > line["waited_for_data_s"] >= 0
        assert line["ram_mb"] > 10
    assert [line["epoch"] for line in lines] == pytest.approx([(n + 1) / 5 for n in range(20)])


def test_it_learns(tmp_path):
    config = variant(epochs=80, checkpoints=RARELY, freeze_batch_norm=True)
    trainer = train_toy(tmp_path, config, dropout=0.0)
    losses = [line["loss"] for line in log(tmp_path)]
    assert sum(losses[-20:]) < 0.2 * sum(losses[:20])
    with trainer.ema.applied_to(trainer.model):
        trainer.model.eval()
        assert evaluate_toy(trainer.model)["quality"] > -6  # the variance of the truth is 8


def test_evaluation_changes_nothing_and_sees_the_averages(tmp_path):
    seen = []

    def evaluate(model):
        seen.append(({name: tensor.clone() for name, tensor in model.state_dict().items()}, model.training))
        return evaluate_toy(model)

    with_evaluation = train_toy(tmp_path / "a", evaluate=evaluate, best_metric="quality")
    without = train_toy(tmp_path / "b")
    assert same(with_evaluation.model, without.model)
    assert len(seen) == 4  # after every epoch
    assert not any(training for _, training in seen)
    averages, _ = seen[-1]
    assert all(torch.equal(tensor, with_evaluation.ema.average[name]) for name, tensor in averages.items())
    assert [line["epoch"] for line in log(tmp_path / "a", "evaluation")] == [1, 2, 3, 4]


def test_evaluations_every_second_epoch_and_at_the_end(tmp_path):
    config = variant(epochs=5, evaluate_every=2)
    train_toy(tmp_path, config, evaluate=evaluate_toy, source=ToySource(length=9))  # 22 steps, epochs end within steps
    assert [line["step"] for line in log(tmp_path, "evaluation")] == [9, 18, 22]


def test_best_weights_are_exported_when_they_are_best(tmp_path):
    exported = []
    qualities = iter([1.0, 3.0, 2.0, float("nan")])
    train_toy(
        tmp_path,
        evaluate=lambda model: {"quality": next(qualities)},
        best_metric="quality",
        export=lambda model, path, metrics: exported.append((path.name, dict(metrics))),
    )
    assert exported == [
        ("best.safetensors", {"quality": 1.0}),
        ("best.safetensors", {"quality": 3.0}),
        ("last.safetensors", {}),
    ]


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(tmp_path):
    trainer = make_trainer(tmp_path, source=ToySource(broken=frozenset({6})))
    with pytest.raises(LossFailure, match=r"the loss is not finite \(token-6\)") as caught:
        trainer.fit()
    assert all(weight.isfinite().all() for weight in trainer.model.parameters())
    path = re.search(r"are in (\S+\.json)", str(caught.value))[1]
    report = json.loads(Path(path).read_text())
    step = next(keys for keys in trainer.stream.step_keys() if 6 in [key.sample for key in keys])
    assert [each["tokens"] for each in report["passes"]] == [[f"token-{key.sample}"] for key in step]
    guilty = next(each for each in report["passes"] if each["tokens"] == ["token-6"])
    assert guilty["terms"]["square"] == "nan"
    assert report["seed"] == 0
    assert SampleKey(0, 6) in step


def test_gradients_that_are_not_finite_stop_too(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.model.body[0].weight.register_hook(lambda gradient: gradient * float("inf"))
    before = {name: tensor.clone() for name, tensor in trainer.model.named_parameters()}
    with pytest.raises(LossFailure, match="the gradients are not finite"):
        trainer.fit()
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.named_parameters())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_trains_and_computes_the_loss_in_float32(tmp_path, precision):
    trainer = make_trainer(tmp_path, variant(precision=precision, epochs=40, checkpoints=RARELY), dropout=0.0)
    loss, dtypes = trainer.loss, set()

    def checked(outputs, targets):
        dtypes.add(outputs.score_B.dtype)
        return loss(outputs, targets)

    trainer.loss = checked
    trainer.fit()
    assert dtypes == {torch.float32}
    lines = log(tmp_path)
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    assert lines[0]["loss"] != train_first_loss(tmp_path / "fp32")  # something was computed in fewer bits
    assert trainer.scaler.is_enabled() == (precision == "fp16")


def train_first_loss(out):
    train_toy(out, variant(epochs=1), dropout=0.0)
    return log(out)[0]["loss"]


def test_fp16_skips_overflowing_steps_and_gives_up_after_many(tmp_path):
    trainer = make_trainer(tmp_path, variant(precision="fp16", epochs=20, checkpoints=RARELY))
    overflowing = set(range(3, 6))
    weight = trainer.model.body[0].weight
    weight.register_hook(lambda g: g * float("inf") if trainer.step in overflowing else g)
    before = trainer.scaler.get_scale()
    trainer.fit()
    assert trainer.scaler.get_scale() <= before / 8
    assert trainer.skipped == 0
    trainer = make_trainer(tmp_path / "hopeless", variant(precision="fp16", epochs=20, checkpoints=RARELY))
    trainer.model.body[0].weight.register_hook(lambda g: g * float("nan"))
    with pytest.raises(LossFailure, match="31 steps in a row overflowed in fp16"):
        trainer.fit()


def test_frozen_batch_norms_keep_their_statistics(tmp_path):
    trainer = train_toy(tmp_path, variant(freeze_batch_norm=True), evaluate=evaluate_toy)
    norm = trainer.model.body[1]
    assert norm.running_mean.abs().sum() == 0
    assert not torch.equal(norm.weight, torch.ones(16))  # but their scale is trained
    assert trainer.model.body[3].training


def test_mistakes_are_told_before_anything_is_trained(tmp_path):
    with pytest.raises(ValueError, match="the data set is empty"):
        make_trainer(tmp_path / "a", source=ToySource(length=0))
    with pytest.raises(ValueError, match="precision='fp8'"):
        variant(precision="fp8")
    with pytest.raises(ValueError, match="workers=-1"):
        variant(workers=-1)
    with pytest.raises(ValueError, match=r"lr=0\.0"):
        OptimizerConfig(lr=0.0)
    with pytest.raises(ValueError, match="keep=0"):
        CheckpointConfig(keep=0)


def test_memory_stays_flat(tmp_path):
    """The short form of benchmarks/training.py."""
    config = variant(epochs=120, checkpoints=CheckpointConfig(every_steps=100, keep=1), log_every=10)
    trainer = make_trainer(tmp_path, config)
    take, memory = trainer._optimizer_step, []

    def noted(examples, stop):
        memory.append(resident_bytes())
        return take(examples, stop)

    trainer._optimizer_step = noted
    trainer.fit()
    assert len(memory) == 600
    assert memory[-1] - memory[200] < 3e6, f"grew by {(memory[-1] - memory[200]) / 400:.0f} bytes a step"


def test_tensorboard_curves(tmp_path):
    train_toy(tmp_path, variant(epochs=1), tensorboard=True, evaluate=evaluate_toy)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"train/loss", "train/lr", "evaluation/quality"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5]


def test_without_tensorboard_the_install_line_is_told(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    trainer = make_trainer(tmp_path, TOY_CONFIG, tensorboard=True)
    with pytest.raises(ModuleNotFoundError, match="pip install tensorboard"):
        trainer.fit()
