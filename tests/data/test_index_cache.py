"""The index of the tables: the same keyframes without reading a table, and never one that does not fit."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pickle
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fusionocc_core import cli
from fusionocc_core.data import index_cache, nuscenes
from fusionocc_core.data.index_cache import boxes_path, index_path, read_boxes
from fusionocc_core.data.nuscenes import NuScenesFrames

NAME = "fusionocc_core.data.index_cache"


def leaves(value: object) -> Iterator[object]:
    """Every value inside of keyframes, with its type, in order; dictionaries by their order, too."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield field.name
            yield from leaves(getattr(value, field.name))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from leaves(item)
    elif isinstance(value, np.ndarray):
        yield (str(value.dtype), value.shape, value.flags.writeable, value.tobytes())
    else:
        yield (type(value), value)


def content(frames: NuScenesFrames) -> list[object]:
    keyframes = [leaf for n in range(len(frames)) for leaf in leaves(frames.keyframe(n))]
    return [frames.version, frames.cameras, frames.lidar, frames.scenes, len(frames), keyframes]


OPTIONS = (
    {},
    {"split": "mini_val"},
    {"scenes": ["scene-0103", "scene-0061"]},
    {"cameras": ["CAM_BACK", "CAM_FRONT"], "camera_history": 1, "lidar_history": 3},
    {"cameras": []},
    {"lidar": "LIDAR_TOP"},
)


def test_the_same_keyframes_as_from_the_tables(fresh_tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = fresh_tree(lidars=("LIDAR_TOP", "LIDAR_B"), sweeps=1)
    rows = tree.rows("sample_data")
    lost = next(r for r in rows if "CAM_BACK/" in r["filename"] and r["is_key_frame"])
    tree.write("sample_data", [r for r in rows if r is not lost])  # a keyframe with one picture less
    plain = [NuScenesFrames(tree.root, **options) for options in OPTIONS]
    assert not any(frames.has_index for frames in plain)
    expected = [content(frames) for frames in plain]
    boxes = [list(leaves(box)) for n in range(5) for where in ("lidar", "global") for box in plain[0].boxes(n, where)]
    path = plain[1].write_index()
    assert {p.name for p in path.parent.iterdir()} == {path.name, "boxes-v1.0-mini.safetensors"}
    with monkeypatch.context() as patch:
        patch.setattr(nuscenes, "Tables", None)
        patch.setitem(sys.modules, "nuscenes.nuscenes", None)
        indexed = [NuScenesFrames(tree.root, **options) for options in OPTIONS]
        assert all(frames.has_index for frames in indexed)
        assert [content(frames) for frames in indexed] == expected
        front = [indexed[0].keyframe(n).records["CAM_FRONT"] for n in range(2)]
        assert front[0].sensor2ego is front[1].sensor2ego
        assert indexed[0].keyframe(0).records["LIDAR_TOP"].intrinsics is None
        again = pickle.loads(pickle.dumps(indexed[3]))
        assert content(again) == expected[3]
        np.testing.assert_array_equal(again[3].cameras[0].image, plain[3][3].cameras[0].image)
        for frames in (indexed[0], pickle.loads(pickle.dumps(indexed[0]))):
            found = [box for n in range(5) for where in ("lidar", "global") for box in frames.boxes(n, where)]
            assert [list(leaves(box)) for box in found] == boxes
            assert len(boxes) >= 10
    assert len(list(indexed[0].sensor_records("scene-0061"))) == len(list(plain[0].sensor_records("scene-0061")))


def test_wrong_arguments_are_told_in_the_same_words(fresh_tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = fresh_tree()
    wrong = ({"cameras": ["CAM_X"]}, {"lidar": "X"}, {"split": "nope"}, {"split": "test"}, {"scenes": ["x"]})

    def messages() -> list[str]:
        found = []
        for options in wrong:
            with pytest.raises(ValueError, match=str(next(iter(options)))) as error:
                NuScenesFrames(tree.root, **options)
            found.append(str(error.value))
        return found

    from_tables = messages()
    NuScenesFrames(tree.root).write_index()
    monkeypatch.setattr(nuscenes, "Tables", None)
    assert messages() == from_tables


@pytest.mark.parametrize("table", ["sample_data", "sample_annotation"])
def test_a_changed_table_makes_it_stale(fresh_tree, table: str, caplog: pytest.LogCaptureFixture) -> None:
    tree = fresh_tree()
    NuScenesFrames(tree.root).write_index()
    path = tree.table_path(table)
    rows = tree.rows(table)
    if table == "sample_data":
        for row in rows:
            row["width"] = 161
    tree.write(table, rows)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10_000_000))
    with caplog.at_level(logging.WARNING, NAME):
        frames = NuScenesFrames(tree.root)
    (record,) = caplog.records
    assert f"is not used: changed since: {table}.json; reading the tables" in record.getMessage()
    assert frames.keyframe(0).records["CAM_BACK"].width == (161 if table == "sample_data" else 160)
    assert not frames.has_index
    frames.write_index()
    assert NuScenesFrames(tree.root).has_index


def test_tables_that_change_while_they_are_read_never_give_a_valid_index(fresh_tree) -> None:
    tree = fresh_tree()
    frames = NuScenesFrames(tree.root)
    os.utime(tree.table_path("ego_pose"), ns=(0, 0))
    frames.write_index()
    assert not NuScenesFrames(tree.root).has_index


def test_damage_anywhere_is_noticed(fresh_tree, caplog: pytest.LogCaptureFixture) -> None:
    tree = fresh_tree(scenes={"scene-0061": 2})
    plain = NuScenesFrames(tree.root)
    expected, path = content(plain), plain.write_index()
    whole = path.read_bytes()
    damaged = [b"", whole[:4], whole[:500], whole[:-1], whole + b"\0", bytes(len(whole)), b"\xff" * len(whole)]
    rng = np.random.default_rng(0)
    for place in [*range(0, 40), *rng.integers(0, len(whole), 60)]:
        changed = bytearray(whole)
        changed[place] ^= 1 << int(rng.integers(0, 8))
        damaged.append(bytes(changed))
    refused = 0
    for data in damaged:
        path.write_bytes(data)
        caplog.clear()
        with caplog.at_level(logging.WARNING, NAME):
            index = index_cache.read_index(tree.root, tree.version)
        assert (index is None) == (len(caplog.records) == 1)
        if index is None:
            refused += 1
        else:  # a bit of the header that means nothing, such as one of its spaces
            frames = NuScenesFrames(tree.root)
            assert frames.has_index
            assert content(frames) == expected
    assert refused > 0.95 * len(damaged)
    path.write_bytes(damaged[2])
    assert content(NuScenesFrames(tree.root)) == expected


def test_boxes_whose_file_is_damaged_come_from_the_tables(fresh_tree, capsys, caplog) -> None:
    tree = fresh_tree(scenes={"a": 2})
    rows = tree.rows("sample_annotation")
    extra = {**rows[0], "token": "ünusual", "size": [1, 2, 3], "num_lidar_pts": 0}
    tree.write("sample_annotation", [r for r in [*rows, extra, {**extra, "token": ""}] if r is not rows[1]])
    expected = [list(leaves(box)) for n in range(2) for box in NuScenesFrames(tree.root).boxes(n)]
    NuScenesFrames(tree.root).write_index()
    path = boxes_path(tree.root, tree.version)
    for data in (path.read_bytes(), path.read_bytes()[:-9]):
        path.write_bytes(data)
        frames = NuScenesFrames(tree.root)
        assert frames.has_index
        assert [list(leaves(box)) for n in range(2) for box in frames.boxes(n)] == expected
    assert len(expected) == 3  # the second keyframe has none
    assert caplog.text.count("is not used: it is damaged") == 1
    assert cli.main(["prepare", str(tree.root)]) == 2
    assert read_boxes(tree.root, tree.version) is not None


def test_a_data_set_without_boxes(fresh_tree) -> None:
    tree = fresh_tree(scenes={"a": 1})
    tree.write("sample_annotation", [])
    tree.write("instance", [])
    NuScenesFrames(tree.root).write_index()
    frames = NuScenesFrames(tree.root)
    assert frames.has_index
    assert frames.boxes(0) == []


def test_another_layout_or_another_version_is_not_read(fresh_tree, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    tree = fresh_tree(scenes={"a": 1})
    monkeypatch.setattr(index_cache, "LAYOUT", 99)
    NuScenesFrames(tree.root).write_index()
    monkeypatch.undo()
    assert not NuScenesFrames(tree.root).has_index
    assert "it has layout 99, this program reads 2" in caplog.text
    NuScenesFrames(tree.root).write_index()
    other = tree.root / "v2"
    (tree.root / tree.version).rename(other)
    index_path(tree.root, tree.version).rename(index_path(tree.root, "v2"))
    assert not NuScenesFrames(tree.root).has_index
    assert f"it is of {tree.version}" in caplog.text


def test_a_moved_data_set_keeps_its_index(fresh_tree, tmp_path: Path) -> None:
    tree = fresh_tree(scenes={"a": 1})
    NuScenesFrames(tree.root).write_index()
    moved = tree.root.rename(tmp_path / "elsewhere")
    frames = NuScenesFrames(moved)
    assert frames.has_index
    assert frames.keyframe(0).records["CAM_FRONT"].path.is_relative_to(moved)
    assert frames[0].cameras


def test_prepare_writes_it_and_goes_on_without(fresh_tree, capsys, caplog: pytest.LogCaptureFixture) -> None:
    tree = fresh_tree(scenes={"a": 2})
    path = index_path(tree.root, tree.version)
    assert cli.main(["prepare", str(tree.root), "--check", "--need", "pictures"]) == 0
    assert not path.parent.exists()
    assert cli.main(["prepare", str(tree.root)]) == 2  # has no lidarseg, but an index now
    assert str(path) in capsys.readouterr().out
    assert NuScenesFrames(tree.root).has_index
    before = path.stat().st_mtime_ns
    assert cli.main(["prepare", str(tree.root)]) == 2
    assert path.stat().st_mtime_ns == before

    shutil.rmtree(path.parent)
    path.parent.write_text("in the way: no folder can be made, as on a disk that is read-only")
    caplog.clear()
    assert cli.main(["prepare", str(tree.root)]) == 2
    assert "no labels of points; get nuScenes-lidarseg" in capsys.readouterr().err
    (record,) = caplog.records
    assert "no index of the tables, the data set opens slowly but works:" in record.getMessage()
    assert len(NuScenesFrames(tree.root)) == 2


def test_a_broken_record_elsewhere_means_no_index(fresh_tree, caplog: pytest.LogCaptureFixture) -> None:
    tree = fresh_tree(scenes={"a": 1, "b": 1})
    rows = tree.rows("ego_pose")
    rows[-2]["rotation"] = [0.0, 0.0, 0.0, 0.0]
    tree.write("ego_pose", rows)
    assert cli.main(["prepare", str(tree.root), "--scene", "a"]) == 2
    assert "quaternion_wxyz: length is zero" in caplog.text
    assert not index_path(tree.root, tree.version).exists()


def test_own_splits_are_read_anew(fresh_tree) -> None:
    tree = fresh_tree(scenes={"a": 1, "b": 1})
    NuScenesFrames(tree.root).write_index()
    for scene in ("a", "b"):
        (tree.root / tree.version / "splits.json").write_text(json.dumps({"mine": [scene]}))
        frames = NuScenesFrames(tree.root, split="mine")
        assert (frames.has_index, frames.scenes) == (True, (scene,))
