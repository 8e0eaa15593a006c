"""The teacher of keyframes without labels: what depth it sees, what it says, and that its runs go on bit by bit."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from labelled_sample_tree import write_labelled_tree
from rich.console import Console
from uniocc_recipes import rendered, taught

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data"))
from labelled_tree import add_lidarseg

from fusionocc_core.engine.distributed import World
from fusionocc_core.engine.ema import Ema
from fusionocc_core.engine.occupancy_examples import OccupancyExamples
from fusionocc_core.engine.sampler import SampleKey
from fusionocc_core.engine.session import as_used, open_frames, start_training
from fusionocc_core.engine.teacher import TeacherConfig, sure_labels, taught_terms
from fusionocc_core.grids import OCC3D_LABELS
from fusionocc_core.layers.measured_depth import override_depth
from fusionocc_core.layers.view_transform import measured_depth_bins
from fusionocc_core.losses import LossConfig
from fusionocc_core.presets import load_model, make_network
from fusionocc_core.structures import DensityOutputs, Outputs


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    tree = write_labelled_tree(tmp_path_factory.mktemp("data") / "taught")
    add_lidarseg(tree)
    return tree


def train(recipe, tree, out):
    console = Console(file=StringIO())
    world = World(device=torch.device("cpu"))
    trainer = start_training(recipe, name="taught", data=tree.root, out=out, world=world, console=console)
    trainer.fit()
    trainer.recorder.close()
    return trainer


def test_teacher_depth_is_certain_where_the_lidar_is_and_predicted_elsewhere(tree):
    recipe = taught()
    frames = open_frames(tree.root, recipe.model.inputs, split="mini_train", version=None)
    unlabelled = OccupancyExamples(frames, recipe.data, recipe.needs, seed=0).examples([SampleKey(0, 2)]).unlabelled
    depth_BNHW = unlabelled.batch.depth_BNHW.clone()
    depth_BNHW[0, 1, ::9, ::7] = torch.linspace(1.0, 16.9, 8 * 14).view(8, 14)
    batch = replace(unlabelled.batch, depth_BNHW=depth_BNHW)
    teacher = make_network(replace(recipe.model, depth_source="measured")).eval()
    lifted = []
    teacher.lift.register_forward_pre_hook(lambda module, inputs: lifted.append(inputs[0]))
    predicted = teacher(batch).depth_logits_BNDhw.softmax(dim=2)
    bins = measured_depth_bins(batch.depth_BNHW, recipe.model.depth_bins, recipe.model.feature_stride)
    depth_BNhwD = lifted[0].movedim(2, -1)
    here = bins > 0
    assert 3 < here.sum() < here.numel()
    assert torch.equal(depth_BNhwD[here], torch.nn.functional.one_hot(bins[here] - 1, 16).float())
    assert torch.equal(depth_BNhwD[~here], predicted.movedim(2, -1)[~here])
    student = make_network(recipe.model).eval()
    student.load_state_dict(teacher.state_dict())
    student.lift.register_forward_pre_hook(lambda module, inputs: lifted.append(inputs[0]))
    student(batch)
    assert torch.equal(lifted[1], predicted)
    with pytest.raises(ValueError, match="override_depth"):
        override_depth(torch.zeros(2, 4, 3, 3), torch.zeros(2, 3, 4, dtype=torch.int64))


def test_the_teacher_is_the_average_and_holds_nothing_itself(tree, tmp_path):
    trainer = train(taught(), tree, tmp_path / "run")
    assert isinstance(trainer.ema, Ema)
    teacher = trainer.teacher.network
    assert teacher.config.depth_source == "measured"
    assert not teacher.training
    averages = trainer.ema.average
    assert all(averages[name].data_ptr() == tensor.data_ptr() for name, tensor in teacher.state_dict().items())
    assert not any(p.requires_grad for p in teacher.parameters())
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    told = [line for line in lines if line["kind"] == "train"]
    assert len({tuple(line) for line in told}) == 1, "the same terms in every step"
    assert told[0]["taught_occupied"] == 0, "the ramp begins at zero"
    assert any(line["taught_occupied"] > 0 for line in told)


def test_the_student_practises_with_measured_depth_on_labelled_keyframes_alone(tree, tmp_path):
    recipe = taught()
    frames = open_frames(tree.root, recipe.model.inputs, split="mini_train", version=None)
    seen = {}
    for practice in (0.0, 0.5, 1.0):
        told = replace(recipe, train=replace(recipe.train, teacher=replace(recipe.train.teacher, practice=practice)))
        examples = OccupancyExamples(frames, told.data, told.needs, seed=0)
        seen[practice] = [examples.examples([SampleKey(epoch, n)]) for epoch in range(16) for n in range(len(examples))]
    measured = [bool(one.batch.depth_BNHW.any()) for one in seen[0.0]]  # without practice it is not looked at
    shown = {practice: [bool(one.batch.depth_BNHW.any()) for one in some] for practice, some in seen.items()}
    labelled = [one.unlabelled is None for one in seen[0.0]]
    assert sum(measured) > 16
    assert shown[1.0] == [has and known for has, known in zip(measured, labelled, strict=True)]
    assert all(keeps <= might for keeps, might in zip(shown[0.5], shown[1.0], strict=True))
    assert 0.25 < sum(shown[0.5]) / sum(shown[1.0]) < 0.75
    for one, plain, has in zip(seen[1.0], seen[0.0], measured, strict=True):
        assert torch.equal(one.targets.depth_bins_BNhw, plain.targets.depth_bins_BNhw), "it still teaches depth"
        assert one.unlabelled is None or bool(one.unlabelled.batch.depth_BNHW.any()) >= has, "the teacher sees it"


def test_what_has_practised_is_evaluated_and_kept_without_measured_depth(tree, tmp_path):
    trainer = train(taught(), tree, tmp_path / "run")
    assert trainer.model.config.depth_source == "measured"
    kept = load_model(str(tmp_path / "run" / "last.safetensors"))
    assert kept.config == taught().model
    assert kept.config.depth_source == "predicted"
    averages = trainer.ema.average
    assert all(torch.equal(averages[name], tensor) for name, tensor in kept.state_dict().items())
    used = as_used(trainer.model, taught().model)
    assert used.config == taught().model
    own = trainer.model.state_dict()
    assert all(own[name].data_ptr() == tensor.data_ptr() for name, tensor in used.state_dict().items())
    assert as_used(used, taught().model) is used
    elsewhere = as_used(trainer.model.to("meta"), taught().model)
    assert {tensor.device.type for tensor in (*elsewhere.parameters(), *elsewhere.buffers())} == {"meta"}


def test_a_run_with_a_teacher_goes_on_bit_by_bit(tree, tmp_path):
    recipe = taught()
    whole = train(recipe, tree, tmp_path / "whole")
    stopped = tmp_path / "stopped"
    console, world = Console(file=StringIO()), World(device=torch.device("cpu"))
    first = start_training(recipe, name="taught", data=tree.root, out=stopped, world=world, console=console)
    step = first._optimizer_step

    def stop_after_two(examples, stop):
        told = step(examples, stop)
        return {**told, "stop": 15.0} if first.step == 1 else told

    first._optimizer_step = stop_after_two
    assert first.fit() == 15
    first.recorder.close()
    second = train(recipe, tree, stopped)
    assert second.step == whole.step > 2
    for ours, theirs in ((second.model, whole.model), (second.teacher.network, whole.teacher.network)):
        assert all(
            torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
        )


def test_rays_alone_train_and_evaluate(tree, tmp_path):
    trainer = train(rendered(), tree, tmp_path / "run")
    assert trainer.step == 4
    assert (tmp_path / "run" / "best.safetensors").is_file()
    silent = replace(rendered(), data=replace(rendered().data, val_keyframes=0))
    train(silent, tree, tmp_path / "silent")
    assert "evaluation" not in (tmp_path / "silent" / "log.jsonl").read_text()


def test_what_the_teacher_is_sure_of():
    odds = torch.tensor([-9.0, -1.0, 9.0, 9.0])[None, :, None, None]
    semantic = torch.zeros(1, 4, 1, 1, 17)
    semantic[0, 2, ..., 5] = 9.0
    density = DensityOutputs(density_BXYZ=odds.exp(), semantic_BXYZK=semantic, occupied_logits_BXYZ=odds)
    outputs = Outputs(logits_BKXYZ=torch.zeros(1, 18, 4, 1, 1), density=density)
    everything = TeacherConfig(free_share=1.0)
    assert sure_labels(outputs, everything, OCC3D_LABELS).flatten().tolist() == [17, 255, 5, 255]
    assert sure_labels(outputs, replace(everything, free_share=0.0), OCC3D_LABELS)[0, 0] == 255
    scores = torch.zeros(1, 18, 2, 1, 1)
    scores[0, 17, 0] = scores[0, 3, 1] = 20.0
    plain = sure_labels(Outputs(logits_BKXYZ=scores), everything, OCC3D_LABELS)
    assert plain.flatten().tolist() == [17, 3]


def test_the_weight_rises_along_the_ramp():
    config = TeacherConfig(weight=2.0, start_epoch=4.0, ramp_epochs=2.0)
    assert [config.weight_at(epoch) for epoch in (0.0, 4.0, 5.0, 6.0, 9.0)] == [0.0, 0.0, 1.0, 2.0, 2.0]
    assert replace(config, ramp_epochs=0.0).weight_at(4.0) == 2.0
    for wrong in ({"confidence": 1.0}, {"free_share": 1.5}, {"weight": 0.0}, {"start_epoch": -1.0}, {"practice": 2.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            replace(config, **wrong)


def test_it_teaches_the_terms_of_voxels():
    recipe = taught()
    terms = taught_terms(recipe.loss, has_density=True)
    assert (terms.occupied, terms.occupied_class, terms.depth, terms.rendering) == (1.0, 1.0, 0.0, None)
    alone = taught_terms(rendered().loss, has_density=True)
    assert (alone.occupied, alone.occupied_class, alone.cross_entropy) == (1.0, 1.0, 0.0)
    assert taught_terms(LossConfig(cross_entropy=0.0, depth=1.0), has_density=False).cross_entropy == 1.0
