"""`fusionocc predict`: every keyframe once, the promised files, resuming, refusing to mix."""

import argparse
import json
from dataclasses import replace

import numpy as np
import pytest
from nuscenes_tree import write_tree
from PIL import Image
from rich.console import Console

from fusionocc_core import DEFAULT_PRESET
from fusionocc_core.commands import predict
from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_core.grids import OCC3D_LABELS, VoxelGrid
from fusionocc_core.structures import UNTRAINED, Occupancy, Timings
from fusionocc_core.viz.export import remove_results, result_paths, results_in, write_result, write_volume
from fusionocc_core.viz.summary import Summary

GRID = VoxelGrid(frame="ego", lower=(-8.0, -4.0, -1.0), upper=(8.0, 4.0, 3.0), voxel_size=(0.5, 0.5, 0.5))
CAR = OCC3D_LABELS.names.index("car")
BLANK = Occupancy(
    labels=np.full(GRID.shape, OCC3D_LABELS.free, np.uint8),
    grid=GRID,
    label_set=OCC3D_LABELS,
    stamp_ns=0,
    model="stub",
    trained_on=UNTRAINED,
)


class Stub:
    """Answers with as many cars as frames were seen before."""

    def __init__(self, fail_at=None):
        self.seen, self.fail_at = [], fail_at

    def __call__(self, frame):
        if len(self.seen) == self.fail_at:
            raise ValueError("network refused")
        labels = BLANK.labels.copy()
        labels.flat[: len(self.seen) + 1] = CAR
        self.seen.append(frame.stamp_ns)
        timings = Timings(prepare_s=0.1, network_s=0.2 * len(self.seen), decode_s=0.0)
        confidence = np.full(GRID.shape, 200, np.uint8)
        return replace(BLANK, labels=labels, confidence=confidence, stamp_ns=frame.stamp_ns, timings=timings)


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    tree = write_tree(tmp_path_factory.mktemp("d"), cameras={"CAM_FRONT": 0.0, "CAM_BACK": 180.0})
    return NuScenesFrames(tree.root)


def printed(renderable):
    console = Console(width=100)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


class TestFrames:
    def test_every_keyframe_gets_its_volume_and_its_picture(self, frames, tmp_path):
        stub = Stub()
        summary = predict.predict_frames(frames, stub, tmp_path, blank=BLANK)
        assert stub.seen == [frames[i].stamp_ns for i in range(5)]
        assert (summary.frames_in, summary.frames_out) == (5, 5)
        for n in range(5):
            paths = result_paths(tmp_path, frames.keyframe(n).scene, frames.stamp_ns(n))
            assert paths.volume == tmp_path / frames.keyframe(n).scene / f"{stub.seen[n]}.npz"
            with np.load(paths.volume) as volume:
                assert set(volume.files) == {"labels", "confidence", "origin", "voxel_size"}
                assert (volume["labels"] == CAR).sum() == n + 1
                assert volume["labels"].shape == volume["confidence"].shape == GRID.shape
                assert volume["labels"].dtype == volume["confidence"].dtype == np.uint8
                np.testing.assert_array_equal(volume["origin"], GRID.lower)
                np.testing.assert_array_equal(volume["voxel_size"], GRID.voxel_size)
            assert Image.open(paths.picture).size[0] == 1920
        assert not list(tmp_path.rglob(".*"))

    def test_goes_on_where_it_was(self, frames, tmp_path):
        with pytest.raises(ValueError, match="network refused"):
            predict.predict_frames(frames, Stub(fail_at=2), tmp_path, blank=BLANK, pictures=False)
        second = Stub()
        summary = predict.predict_frames(frames, second, tmp_path, blank=BLANK, pictures=False)
        assert second.seen == [frames.stamp_ns(i) for i in (2, 3, 4)]
        assert (summary.frames_out, summary.frames_earlier) == (5, 2)
        assert "of these from an earlier run │ 2 (--overwrite predicts anew)" in printed(summary.render())
        assert len(summary.latencies_s) == 3
        assert summary.counts[CAR] == (1 + 2) + (1 + 2 + 3)

    def test_pictures_are_caught_up_and_overwrite_begins_anew(self, frames, tmp_path):
        two = frames[:2]
        predict.predict_frames(two, Stub(), tmp_path, blank=BLANK, pictures=False)
        assert not list(tmp_path.rglob("*.png"))
        predict.predict_frames(two, Stub(), tmp_path, blank=BLANK)
        assert len(list(tmp_path.rglob("*.png"))) == 2
        again = Stub()
        summary = predict.predict_frames(two, again, tmp_path, blank=BLANK, overwrite=True, pictures=False)
        assert len(again.seen) == 2
        assert summary.frames_earlier == 0
        assert "earlier" not in printed(summary.render())

    def test_volumes_without_confidence_or_of_another_time_are_refused(self, frames, tmp_path):
        with pytest.raises(ValueError, match="no confidence"):
            write_volume(tmp_path / "a.npz", BLANK)
        with pytest.raises(ValueError, match="stamp_ns=0 belongs to another frame"):
            write_result(tmp_path, frames[0], BLANK)
        assert not list(tmp_path.iterdir())


def leave_results(out, *names):
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("")


class TestFolder:
    def test_results_of_another_run_are_not_mixed_in(self, tmp_path):
        out = tmp_path / "out"
        predict.claim_folder(out, {"preset": "a", "data": "x"}, overwrite=False)
        leave_results(out, "scene/123.npz")
        predict.claim_folder(out, {"preset": "a", "data": "x"}, overwrite=False)
        with pytest.raises(ValueError, match=r"preset was a, is b.*--overwrite"):
            predict.claim_folder(out, {"preset": "b", "data": "x"}, overwrite=False)
        predict.claim_folder(out, {"preset": "b", "data": "x"}, overwrite=True)
        assert json.loads((out / predict.SETTINGS).read_text())["preset"] == "b"

    def test_overwriting_with_another_network_takes_the_old_results_away_first(self, tmp_path):
        predict.claim_folder(tmp_path, {"preset": "a"}, overwrite=False)
        leave_results(tmp_path, "one/1.npz", "one/1.png", "one/notes.txt", "two/2.npz")
        predict.claim_folder(tmp_path, {"preset": "a"}, overwrite=True)
        assert len(results_in(tmp_path)) == 3  # of the same network: replaced one by one
        predict.claim_folder(tmp_path, {"preset": "b"}, overwrite=True)
        assert results_in(tmp_path) == []
        assert (tmp_path / "one" / "notes.txt").is_file()

    def test_only_results_are_removed(self, tmp_path):
        leave_results(tmp_path, "123.npz", "123.png", "notes.txt", "4x.png", "5.jpg")
        remove_results(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["4x.png", "5.jpg", "notes.txt"]

    def test_a_note_without_results_binds_nobody(self, tmp_path):
        predict.claim_folder(tmp_path, {"preset": "a"}, overwrite=False)
        leave_results(tmp_path, "scene/notes.txt", "scene/12x.png")
        predict.claim_folder(tmp_path, {"preset": "b"}, overwrite=False)
        assert json.loads((tmp_path / predict.SETTINGS).read_text()) == {"preset": "b"}

    @pytest.mark.parametrize(("note", "message"), [(None, r"there is no predict\.json"), ('{"pre', "is damaged")])
    def test_results_of_nobody_knows_what_are_not_mixed_in(self, tmp_path, note, message):
        leave_results(tmp_path, "scene/123.png")
        if note is not None:
            (tmp_path / predict.SETTINGS).write_text(note)
        with pytest.raises(ValueError, match=message):
            predict.claim_folder(tmp_path, {"preset": "a"}, overwrite=False)


class TestSummary:
    def test_percentiles_and_counts(self):
        summary = Summary(frames_in=4)
        for n, seconds in enumerate((0.1, 0.2, 0.3, 1.0)):
            labels = BLANK.labels.copy()
            labels.flat[: 100 * (n + 1)] = CAR
            summary.add(replace(BLANK, labels=labels), seconds)
        assert summary.latency(50) == pytest.approx(0.25)
        assert summary.latency(95) == pytest.approx(0.895)
        text = printed(summary.render())
        lines = {line.split("│")[1].strip(" █"): line for line in text.splitlines() if "│" in line}
        assert "1,000" in lines["car"]
        assert "250" in lines["car"]
        assert "250 ms" in lines["latency p50"]
        assert "895 ms" in lines["latency p95"]
        assert UNTRAINED in lines["weights"]

    def test_nothing_yet(self):
        assert "frames out" in printed(Summary(frames_in=3).render())
        with pytest.raises(ValueError, match="no frame with a latency"):
            Summary().latency(50)

    def test_label_sets_are_not_added_up(self):
        summary = Summary()
        summary.add(BLANK)
        with pytest.raises(ValueError, match="label set 'other'"):
            summary.add(replace(BLANK, label_set=replace(OCC3D_LABELS, name="other")))


def parse(*arguments):
    parser = argparse.ArgumentParser()
    predict.add_parser(parser.add_subparsers())
    return parser.parse_args(["predict", *map(str, arguments)])


@pytest.mark.slow
def test_the_default_network_over_a_data_set(frames, tmp_path, capsys):
    args = parse("--data", frames.root, "--out", tmp_path / "out", "--scene", "scene-0103", "--device", "cpu")
    assert args.run(args) == 0
    output = capsys.readouterr().out
    assert UNTRAINED not in output
    assert "simulated streets" in output
    (volume,) = (tmp_path / "out" / "scene-0103").glob("*.npz")
    with np.load(volume) as stored:
        assert stored["labels"].shape == (200, 200, 16)
        first = stored["labels"]
    assert volume.with_suffix(".png").is_file()
    again = parse("--data", frames.root, "--out", tmp_path / "two", "--scene", "scene-0103", "--no-pictures")
    assert again.run(again) == 0
    with np.load(tmp_path / "two" / "scene-0103" / volume.name) as stored:
        np.testing.assert_array_equal(stored["labels"], first)
    other = parse("--data", frames.root, "--out", tmp_path / "two", "--preset", "fusionocc-base")
    with pytest.raises(ValueError, match="preset was flashfusion-mini, is fusionocc-base"):
        other.run(other)


def test_a_run_that_cannot_start_leaves_the_folder_to_the_next(frames, tmp_path, monkeypatch):
    out = tmp_path / "out"
    wrong = parse("--data", frames.root, "--out", out, "--preset", "fusionocc-tinny")
    with pytest.raises(ValueError, match="did you mean fusionocc-tiny"):
        wrong.run(wrong)
    absent = parse("--data", frames.root, "--out", out, "--device", "abacus")
    with pytest.raises(ValueError, match="device='abacus'"):
        absent.run(absent)
    assert not out.exists()
    monkeypatch.setattr(predict, "predict_frames", lambda *arguments, **options: Summary(frames_in=5))
    right = parse("--data", frames.root, "--out", out)
    assert right.run(right) == 0
    assert json.loads((out / predict.SETTINGS).read_text())["preset"] == DEFAULT_PRESET


def test_a_rig_of_seven_cameras_is_reduced_by_an_option(tmp_path, monkeypatch):
    rig = {f"CAM_{n}": 360.0 * n / 7 for n in range(7)}
    tree = write_tree(tmp_path / "d", scenes={"lot": 1}, cameras=rig)
    whole = parse("--data", tree.root, "--out", tmp_path / "out")
    with pytest.raises(ValueError, match=r"has 7 cameras \(CAM_0, .*at most 6; choose some with --cameras NAME"):
        whole.run(whole)
    seen = []
    monkeypatch.setattr(predict, "predict_frames", lambda frames, *a, **b: seen.append(frames) or Summary(frames_in=1))
    some = parse("--data", tree.root, "--out", tmp_path / "out", "--cameras", "CAM_3", "CAM_0")
    assert some.run(some) == 0
    assert [camera.name for camera in seen[0][0].cameras] == ["CAM_3", "CAM_0"]
    assert json.loads((tmp_path / "out" / predict.SETTINGS).read_text())["cameras"] == ["CAM_3", "CAM_0"]


def test_bad_keyframes_are_skipped_where_that_is_wanted(tmp_path, monkeypatch, capsys):
    tree = write_tree(tmp_path / "d", scenes={"lot": 4}, cameras={"CAM_FRONT": 0.0})
    picture = tree.file("CAM_FRONT", 1)
    picture.write_bytes(picture.read_bytes()[:200])
    tree.file("LIDAR_TOP", 3).unlink()
    monkeypatch.setattr("fusionocc_core.predictor.Predictor", lambda *arguments, **options: Stub())
    strict = parse("--data", tree.root, "--out", tmp_path / "out", "--no-pictures")
    with pytest.raises(ValueError, match="is truncated"):
        strict.run(strict)
    lenient = parse("--data", tree.root, "--out", tmp_path / "two", "--no-pictures", "--skip-bad")
    assert lenient.run(lenient) == predict.SKIPPED == 1
    output = capsys.readouterr().out
    rows = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in output.splitlines() if "│" in line}
    assert (rows["frames in"], rows["frames out"], rows["skipped"]) == ("4", "2", "2")
    assert [picture.name in line for line in output.splitlines() if line.startswith("skipped lot 15")] == [True, False]
    assert len(list((tmp_path / "two" / "lot").glob("*.npz"))) == 2


def test_a_data_set_that_has_changed_is_noticed(tmp_path):
    tree = write_tree(tmp_path / "d", scenes={"lot": 1}, cameras={"CAM_FRONT": 0.0})
    args = parse("--data", tree.root, "--out", tmp_path / "out")
    before = predict.settings_of(args, NuScenesFrames(tree.root))
    assert predict.settings_of(args, NuScenesFrames(tree.root)) == before
    predict.claim_folder(args.out, before, overwrite=False)
    leave_results(args.out, "lot/1.npz")
    poses = tree.rows("ego_pose")
    poses[0]["translation"][0] += 10.0
    tree.write("ego_pose", poses)
    with pytest.raises(ValueError, match=r"tables was \d+ bytes of 2\d\d\d-.*, is \d+ bytes of .*--overwrite"):
        predict.claim_folder(args.out, predict.settings_of(args, NuScenesFrames(tree.root)), overwrite=False)


def test_a_checkpoint_that_is_not_there(frames, tmp_path):
    args = parse("--data", frames.root, "--out", tmp_path, "--checkpoint", tmp_path / "none.pth")
    with pytest.raises(FileNotFoundError, match=r"--checkpoint .*none\.pth: no such file"):
        args.run(args)
    assert not (tmp_path / predict.SETTINGS).exists()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"--out .*out: cannot be created: Not a directory; choose a writable folder"):
        predict.claim_folder(tmp_path / "file" / "out", {}, overwrite=False)
