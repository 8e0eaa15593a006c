"""`fusionocc prepare`: painting that goes on where it was, and the check that says what is missing."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from labelled_tree import add_lidarseg, add_occ3d, lidarseg_file

from fusionocc_core import cli


def prepare(tree, *options):
    return cli.main(["prepare", str(tree.root), *options])


def maps(tree):
    return {path.relative_to(tree.root): path.read_bytes() for path in (tree.root / "imgseg").rglob("*.npy")}


def numbers(output):
    """Label -> number of the printed table."""
    rows = [line.strip("│┃ ").split("│") for line in output.splitlines() if "│" in line]
    return {row[0].strip(): row[-1].strip() for row in rows if len(row) > 1}


@pytest.fixture
def labelled(fresh_tree):
    tree = fresh_tree()
    add_lidarseg(tree)
    return tree


def test_paints_every_keyframe_once(labelled, capsys):
    assert prepare(labelled, "--workers", "1") == 0
    printed = numbers(capsys.readouterr().out)
    assert (printed["keyframes"], printed["painted"], printed["label maps written"]) == ("5", "5", "30")
    first = maps(labelled)
    assert len(first) == 30
    assert any(np.unique(np.frombuffer(data[128:], np.uint8)).size > 2 for data in first.values())
    stamps = {path: (labelled.root / path).stat().st_mtime_ns for path in first}
    assert prepare(labelled, "--workers", "1") == 0
    printed = numbers(capsys.readouterr().out)
    assert (printed["there already"], printed["painted"]) == ("5", "0")
    assert {path: (labelled.root / path).stat().st_mtime_ns for path in first} == stamps
    assert prepare(labelled, "--workers", "1", "--overwrite") == 0
    assert maps(labelled) == first


def test_goes_on_after_an_interruption(labelled, capsys):
    assert prepare(labelled, "--workers", "1") == 0
    whole = maps(labelled)
    paths = sorted(whole)
    (labelled.root / paths[0]).unlink()
    (labelled.root / paths[7]).write_bytes(b"")
    (labelled.root / paths[-1]).write_bytes(whole[paths[-1]][:100])
    capsys.readouterr()
    assert prepare(labelled, "--workers", "1") == 0
    assert maps(labelled) == whole
    assert int(numbers(capsys.readouterr().out)["painted"]) <= 3


def test_processes_give_the_same_maps(fresh_tree, tmp_path):
    from nuscenes_tree import write_tree

    options = {"scenes": {"scene-0061": 11, "scene-0103": 9}, "image_size": (64, 36)}
    trees = [write_tree(tmp_path / name, **options) for name in ("one", "two")]
    for tree, workers in zip(trees, ("1", "2"), strict=True):
        add_lidarseg(tree)
        assert prepare(tree, "--workers", workers) == 0
    assert maps(trees[0]) == maps(trees[1])
    assert len(maps(trees[0])) == 120


def test_only_the_chosen_scene(labelled):
    assert prepare(labelled, "--workers", "1", "--scene", "scene-0103") == 0
    assert len(maps(labelled)) == 6


def test_a_damaged_cloud_stops_nothing_else(labelled, capsys):
    cloud = labelled.file("LIDAR_TOP")
    cloud.write_bytes(cloud.read_bytes()[:-7])
    assert prepare(labelled, "--workers", "1") == 1
    output = capsys.readouterr().out
    printed = numbers(output)
    assert (printed["painted"], printed["failed"]) == ("4", "1")
    assert "failed: LIDAR_TOP cloud (sample" in output
    assert cloud.name in output.replace("\n", "")
    assert len(maps(labelled)) == 24


def test_a_data_set_without_lidarseg_says_where_to_get_it(fresh_tree, labelled, capsys):
    lidarseg_file(labelled, 2).unlink()
    assert prepare(labelled) == 2
    assert "1 files that" in (error := capsys.readouterr().err)
    assert "nuscenes.org" in error
    labelled.table_path("lidarseg").unlink()
    assert prepare(labelled) == 2
    assert "no labels of points; get nuScenes-lidarseg" in capsys.readouterr().err
    assert prepare(labelled, "--workers", "0") == 2
    assert "--workers 0" in capsys.readouterr().err


def test_check_passes_on_a_whole_data_set(labelled, capsys):
    add_occ3d(labelled)
    assert prepare(labelled, "--workers", "1") == 0
    capsys.readouterr()
    for options in ((), ("--deep",)):
        assert (
            prepare(labelled, "--check", "--need", "pictures", "clouds", "occ3d", "imgseg", "lidarseg", *options) == 0
        )
        rows = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines() if "│" in line]
        assert rows == [
            ["pictures", "30", "0", "0"],
            ["clouds", "5", "0", "0"],
            ["occ3d", "5", "0", "0"],
            ["imgseg", "30", "0", "0"],
            ["lidarseg", "5", "0", "0"],
        ]


def test_check_names_what_is_missing_or_damaged_and_where_to_get_it(labelled, capsys, tmp_path):
    add_occ3d(labelled)
    assert prepare(labelled, "--workers", "1") == 0
    before = maps(labelled)
    picture, cloud = labelled.file("CAM_BACK", 1), labelled.file("LIDAR_TOP", 2)
    picture.unlink()
    cloud.write_bytes(cloud.read_bytes()[:-1])
    labels = sorted((labelled.root / "gts").rglob("labels.npz"))
    labels[0].write_bytes(labels[0].read_bytes()[:200])
    np.savez_compressed(labels[1], semantics=np.zeros((200, 200, 16), np.uint8))
    lost = sorted(before)[3]
    (labelled.root / lost).unlink()
    listing = tmp_path / "missing.txt"
    capsys.readouterr()
    assert prepare(labelled, "--check", "--list", str(listing)) == 1
    output = capsys.readouterr().out
    rows = {
        line.replace("│", " ").split()[0]: line.replace("│", " ").split()[1:]
        for line in output.splitlines()
        if "│" in line
    }
    assert rows["pictures"] == ["30", "1", "0"]
    assert rows["clouds"] == ["5", "0", "1"]
    assert rows["occ3d"] == ["5", "0", "2"]
    assert rows["imgseg"] == ["30", "1", "0"]
    assert "lidarseg" not in rows
    lines = listing.read_text().splitlines()
    assert len(lines) == 5
    assert f"missing: {picture}" in lines
    assert f"missing: {labelled.root / lost}" in lines
    assert any("lacks mask_camera.npy, mask_lidar.npy" in line for line in lines)
    assert "get occ3d: https://github.com/Tsinghua-MARS-Lab/Occ3D" in output
    assert "get imgseg: fusionocc prepare ROOT" in output
    assert "v1.0-mini.tgz" in output
    assert (labelled.root / lost).exists() is False


def test_deep_check_sees_inside_of_files(labelled, capsys):
    picture = labelled.file("CAM_BACK")
    data = bytearray(picture.read_bytes())
    data[20 : len(data) - 20] = bytes(len(data) - 40)
    picture.write_bytes(data)
    cloud = labelled.file("LIDAR_TOP")
    points = np.fromfile(cloud, np.float32)
    points[3] = np.nan
    cloud.write_bytes(points.tobytes())
    need = ("--check", "--need", "pictures", "clouds")
    assert prepare(labelled, *need) == 0
    capsys.readouterr()
    assert prepare(labelled, *need, "--deep") == 1
    output = capsys.readouterr().out.replace("\n", "")
    assert picture.name in output
    assert "not finite" in output


def test_check_lists_missing_lidarseg_that_the_devkit_only_counts(labelled, capsys, tmp_path):
    for number in (1, 3):
        lidarseg_file(labelled, number).unlink()
    assert prepare(labelled, "--check", "--list", str(tmp_path / "list.txt")) == 1
    output = capsys.readouterr().out
    assert "nothing else can be checked" in output
    assert len((tmp_path / "list.txt").read_text().splitlines()) == 2
    assert "nuScenes-lidarseg-all-v1.0.tar.bz2" in output


def test_check_of_surroundocc(labelled, capsys):
    assert prepare(labelled, "--check", "--need", "surroundocc") == 1
    output = capsys.readouterr().out
    assert "get surroundocc: https://github.com/weiyithu/SurroundOcc" in output
    names = {labelled.file("LIDAR_TOP", n).name for n in range(5)}
    folder = labelled.root / "surroundocc" / "samples"
    folder.mkdir(parents=True)
    for name in names:
        np.save(folder / f"{name}.npy", np.array([[1, 2, 3, 4]]))
    assert prepare(labelled, "--check", "--need", "surroundocc") == 0


@pytest.mark.slow
def test_killed_in_the_middle_leaves_no_broken_map(tmp_path):
    from nuscenes_tree import write_tree

    trees = [
        write_tree(tmp_path / name, scenes={"scene-0061": 40}, image_size=(160, 90)) for name in ("calm", "killed")
    ]
    for tree in trees:
        add_lidarseg(tree)
    command = [sys.executable, "-m", "fusionocc_core.cli", "prepare", str(trees[1].root), "--workers", "1"]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while run.poll() is None and len(maps(trees[1])) < 60:
        time.sleep(0.001)
    run.send_signal(signal.SIGKILL)
    run.wait()
    left = maps(trees[1])
    assert len(left) >= 60
    for path, data in left.items():
        assert len(data) == 128 + 12 * 20, path
    assert prepare(trees[0], "--workers", "1") == prepare(trees[1], "--workers", "1") == 0
    assert maps(trees[0]) == maps(trees[1])
