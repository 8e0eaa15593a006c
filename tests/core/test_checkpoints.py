"""Files of weights: ours and official ones, whole, damaged, and of something else."""

import json
import pickle
import stat
from dataclasses import dataclass, replace

import pytest
import torch
from fusionocc_cases import little_config, official_habits, with_reference_weights
from safetensors.torch import load_file, save_file

from fusionocc_core import presets
from fusionocc_core.checkpoints import (
    ModelCard,
    decode_config,
    encode_config,
    is_model_file,
    load_strictly,
    read_model,
    read_official,
    save_model,
)
from fusionocc_core.layers.image_backbones import TimmBackboneConfig
from fusionocc_core.models.fusionocc import FusionOcc
from fusionocc_core.models.fusionocc_official import (
    merging_from_official,
    merging_to_official,
    official_state_dict,
    relative_position_index,
)
from fusionocc_core.presets import load_model, load_official
from fusionocc_core.structures import UNTRAINED

PRESET = "little-for-tests"


@pytest.fixture(autouse=True)
def preset(monkeypatch):
    """A preset that is small enough to be written to disk in every test."""
    monkeypatch.setitem(presets.PRESETS, PRESET, lambda: official_habits(little_config()))
    return PRESET


@pytest.fixture(scope="module")
def model():
    return with_reference_weights(FusionOcc(official_habits(little_config())))


@pytest.fixture(scope="module")
def official(model):
    return official_state_dict(model)


def assert_equal_weights(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


# official files


def spconv_layout(official):
    """As a file would hold it that was written with spconv 2 in place of mmcv's sparse convolutions."""
    return {
        name: tensor.permute(4, 0, 1, 2, 3).contiguous() if tensor.ndim == 5 and name.startswith("lidar") else tensor
        for name, tensor in official.items()
    }


LAYOUTS = {
    "mmcv": lambda state: {"meta": {"epoch": 24, "seed": 0}, "state_dict": state, "optimizer": {"state": {}}},
    "ema": lambda state: {"epoch": 24, "state_dict": state, "updates": 10560},
    "bare": lambda state: state,
    "distributed": lambda state: {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
    "spconv": lambda state: {"state_dict": spconv_layout(state)},
    "without counters and indices": lambda state: {
        name: tensor
        for name, tensor in state.items()
        if not name.endswith(("num_batches_tracked", "relative_position_index"))
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_official_layouts(layout, official, model, tmp_path):
    torch.save(LAYOUTS[layout](official), tmp_path / "official.pth")
    loaded = load_model(PRESET, checkpoint=tmp_path / "official.pth")
    assert_equal_weights(loaded, model)
    assert loaded.card == ModelCard(
        preset=PRESET,
        trained_on="official checkpoint official.pth",
        source=str(tmp_path / "official.pth"),
    )
    assert not loaded.training


def test_official_tensors_as_safetensors(official, model, tmp_path):
    save_file(official, tmp_path / "official.safetensors")
    assert not is_model_file(tmp_path / "official.safetensors")
    assert_equal_weights(load_model(PRESET, checkpoint=str(tmp_path / "official.safetensors")), model)


def test_official_to_ours_to_official_is_bit_exact(official, tmp_path):
    random = {
        name: torch.randn_like(tensor) if tensor.is_floating_point() else tensor for name, tensor in official.items()
    }
    torch.save({"state_dict": random}, tmp_path / "official.pth")
    ours = load_model(PRESET, checkpoint=tmp_path / "official.pth")
    save_model(ours, tmp_path / "ours.safetensors")
    again = official_state_dict(load_model(tmp_path / "ours.safetensors"))
    assert set(again) == set(random)
    assert all(torch.equal(again[name], tensor) for name, tensor in random.items())


def test_order_of_patch_merging_inputs():
    """Official: channel, row, column. timm: column, row, channel."""
    channels = 3
    theirs = torch.arange(4 * channels).view(1, -1)
    ours = merging_from_official(theirs)
    for channel in range(channels):
        for row in (0, 1):
            for column in (0, 1):
                official_place = channel * 4 + row * 2 + column
                assert ours[0, (column * 2 + row) * channels + channel] == official_place
    assert torch.equal(merging_to_official(ours), theirs)


def test_position_index_of_a_window_of_two():
    expected = [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    assert relative_position_index(2).tolist() == expected


def test_missing_unexpected_and_reshaped_tensors_are_named(official, tmp_path):
    state = dict(official)
    del state["img_neck.conv.0.weight"], state["predicter.2.bias"]
    state["head.weight"] = torch.zeros(3)
    state["final_conv.conv.bias"] = torch.zeros(7)
    torch.save({"state_dict": state}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth does not fit little-for-tests") as caught:
        load_model(PRESET, checkpoint=tmp_path / "other.pth")
    text = str(caught.value)
    assert "2 missing: img_neck.conv.0.weight, predicter.2.bias" in text
    assert "1 unexpected: head.weight" in text
    assert "1 of another shape: final_conv.conv.bias (file (7,), network (12,))" in text


def test_only_the_first_twenty_are_named():
    target = torch.nn.ModuleList(torch.nn.Linear(1, 1, bias=False) for _ in range(33))
    with pytest.raises(ValueError, match=r"33 missing: 0\.weight, .*19\.weight, and 13 more\.") as caught:
        load_strictly(target, {}, source="nothing", target="this")
    assert "20.weight" not in str(caught.value)


def test_a_failed_load_changes_nothing(model, official, tmp_path):
    torch.save({"state_dict": {**official, "extra": torch.zeros(1)}}, tmp_path / "other.pth")
    target = FusionOcc(model.config)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(ValueError, match="extra"):
        load_official(target, tmp_path / "other.pth")
    assert all(torch.equal(before[name], tensor) for name, tensor in target.state_dict().items())
    assert target.card.trained_on == UNTRAINED


def test_checkpoint_of_a_larger_network_is_refused(official, tmp_path):
    torch.save({"state_dict": official}, tmp_path / "little.pth")
    with pytest.raises(ValueError, match=r"of another shape: .*and \d+ more"):
        load_model("fusionocc-tiny", checkpoint=tmp_path / "little.pth")


CONFIG_TEXT = """
point_cloud_range = [-16.0, -12.0, -1.0, 16.0, 12.0, 5.4]
model = dict(img_view_transformer=dict(type='CrossModalLSS',
    grid_config=dict(
        x=[-16, 16, {step}], y=[-12.0, 12.0, 2.0], z=[-1, 5.4, 1.6], depth=[1.0, 45.0, 0.5])))
"""


def test_another_grid_in_the_config_of_an_official_file_is_noticed(official, tmp_path):
    for step in ("2.0", "0.4"):
        content = {"meta": {"config": CONFIG_TEXT.format(step=step)}, "state_dict": official}
        torch.save(content, tmp_path / f"grid_{step}.pth")
    load_model(PRESET, checkpoint=tmp_path / "grid_2.0.pth")
    with pytest.raises(ValueError, match=r"x from -16\.0 to 16\.0 m in steps of 0\.4 m; this network's has .* 2\.0 m"):
        load_model(PRESET, checkpoint=tmp_path / "grid_0.4.pth")


def test_another_position_index_is_noticed(official, tmp_path):
    name = next(name for name in official if name.endswith("relative_position_index"))
    torch.save({**official, name: official[name].flip(0)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=name):
        load_model(PRESET, checkpoint=tmp_path / "other.pth")


class RunsCode:
    """Unpickling it would print."""

    def __reduce__(self):
        return print, ("code of the file ran",)


def test_code_in_a_file_is_not_run(official, tmp_path, capsys):
    torch.save({"meta": RunsCode(), "state_dict": official}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"not loaded, because .* would have to run code"):
        load_model(PRESET, checkpoint=tmp_path / "other.pth")
    assert capsys.readouterr().out == ""


def damaged_files(tmp_path, official):
    torch.save({"state_dict": official}, tmp_path / "whole.pth")
    save_file(official, tmp_path / "whole.safetensors")
    for name in ("whole.pth", "whole.safetensors"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / f"cut_{name}").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.pth").touch()
    (tmp_path / "text.pth").write_text("these are not weights")
    (tmp_path / "list.pth").write_bytes(pickle.dumps([1, 2, 3], protocol=2))
    torch.save({"state_dict": {"a": "text"}}, tmp_path / "no_tensors.pth")
    return ["cut_whole.pth", "cut_whole.safetensors", "empty.pth", "text.pth", "list.pth", "no_tensors.pth"]


def test_damaged_files_are_named(official, tmp_path):
    for name in damaged_files(tmp_path, official):
        with pytest.raises(ValueError, match=name):
            load_model(PRESET, checkpoint=tmp_path / name)


def test_missing_files():
    for call in (
        lambda: load_model(PRESET, checkpoint="nowhere.pth"),
        lambda: load_model("nowhere.safetensors"),
    ):
        with pytest.raises(FileNotFoundError, match=r"nowhere\.\w+: no such file"):
            call()


def test_networks_without_official_counterpart():
    config = little_config(
        image_backbone=TimmBackboneConfig(name="resnet18", stride=16, out_channels=(256, 512)),
    )
    with pytest.raises(ValueError, match="resnet18"):
        official_state_dict(FusionOcc(config))


def test_read_official_takes_the_config_text(tmp_path):
    torch.save({"meta": {"config": "a = 1"}, "state_dict": {"w": torch.ones(2)}}, tmp_path / "a.pth")
    state, text = read_official(tmp_path / "a.pth")
    assert text == "a = 1"
    assert state["w"].tolist() == [1.0, 1.0]


# files of ours


@pytest.fixture
def saved(model, tmp_path):
    card = ModelCard(preset=PRESET, trained_on="simulated streets", metrics={"mIoU": 41.25})
    path = tmp_path / "ours.safetensors"
    save_model(model, path, card=card)
    return path


def test_a_file_of_ours_needs_nothing_else(saved, model):
    loaded = load_model(saved)
    assert_equal_weights(loaded, model)
    assert loaded.config == model.config
    assert loaded.card == ModelCard(
        preset=PRESET, trained_on="simulated streets", source=str(saved), metrics={"mIoU": 41.25}
    )
    assert_equal_weights(load_model(str(saved)), model)


def test_a_file_of_ours_for_its_preset(saved, model):
    assert_equal_weights(load_model(PRESET, checkpoint=saved), model)


def test_a_file_of_ours_with_another_grid_than_the_preset(saved, monkeypatch):
    grid = replace(little_config().grid, voxel_size=(2.0, 1.0, 1.6))
    lidar = replace(little_config().lidar, grid=replace(grid, voxel_size=(0.5, 0.25, 0.4)))
    monkeypatch.setitem(presets.PRESETS, PRESET, lambda: official_habits(little_config(grid=grid, lidar=lidar)))
    with pytest.raises(ValueError, match=r"grid\.voxel_size: \(2\.0, 2\.0, 1\.6\) and \(2\.0, 1\.0, 1\.6\)"):
        load_model(PRESET, checkpoint=saved)


def test_file_and_checkpoint_together_are_refused(saved):
    with pytest.raises(ValueError, match="holds everything itself"):
        load_model(saved, checkpoint=saved)


def test_official_file_without_preset(official, tmp_path):
    torch.save({"state_dict": official}, tmp_path / "official.pth")
    with pytest.raises(ValueError, match="does not say which network it belongs to"):
        load_model(tmp_path / "official.pth")


def rewrite(path, **metadata):
    """The same file with other metadata."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        old = file.metadata()
    save_file(load_file(path), path, metadata={**old, **metadata})


def test_files_of_other_versions(saved):
    rewrite(saved, format="fusionocc-9")
    with pytest.raises(ValueError, match="format 'fusionocc-9', this version reads 'fusionocc-1'"):
        load_model(saved)


def test_files_of_unknown_networks(saved):
    rewrite(saved, network="FutureOcc")
    with pytest.raises(ValueError, match="holds a FutureOcc, this version knows FusionOcc"):
        load_model(saved)


def test_files_with_unknown_fields(saved):
    config = json.loads(json.dumps(dict(read_model(saved).config)))
    config["lift"]["bilinear"] = True
    rewrite(saved, config=json.dumps(config))
    with pytest.raises(ValueError, match=r"FusionOccConfig\.lift: .*unknown fields \['bilinear'\]"):
        load_model(saved)


def test_a_config_comes_back_whole():
    config = little_config(
        image_backbone=TimmBackboneConfig(name="resnet18", stride=16, out_channels=(256, 512)),
    )
    config = replace(config, inputs=replace(config.inputs, thin_rings_up_to=None))
    for original in (config, little_config(), *(presets.preset_config(name) for name in presets.list_presets())):
        text = json.dumps(encode_config(original))
        assert decode_config(type(original), json.loads(text)) == original
        assert presets.decode_network_config(json.loads(text)) == original


@dataclass(frozen=True, kw_only=True)
class HoldsATensor:
    value: object


def test_configs_hold_plain_values_only():
    with pytest.raises(ValueError, match="a config holds only plain values"):
        encode_config(HoldsATensor(value=torch.zeros(1)))


def test_the_file_appears_whole_or_not_at_all(saved, model, monkeypatch):
    before = saved.read_bytes()

    def fails(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr("fusionocc_core.checkpoints.save_file", fails)
    with pytest.raises(OSError, match="no space"):
        save_model(model, saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_others_may_read_the_file(saved):
    ordinary = saved.with_name("ordinary")
    ordinary.touch()
    assert stat.S_IMODE(saved.stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)


@pytest.mark.parametrize(("folder", "reason"), [("absent", "No such file"), ("file", "Not a directory")])
def test_a_place_that_cannot_be_written_is_named_as_the_caller_knows_it(model, tmp_path, folder, reason):
    (tmp_path / "file").write_text("")
    path = tmp_path / folder / "mine.safetensors"
    with pytest.raises(
        OSError, match=rf"^{path}: cannot be written: {reason}.*; choose a folder that exists"
    ) as raised:
        save_model(model, path)
    assert ".part" not in str(raised.value)
