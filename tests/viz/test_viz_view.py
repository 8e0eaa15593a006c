"""`fusionocc view` and `fusionocc video`: sources, recordings, and what is said where something is wrong."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from nuscenes_tree import write_tree
from view_cases import CAR, GRID, ROAD, Frames, labels, moment, occupancy, with_gaussians

from fusionocc_core.cli import main
from fusionocc_core.commands.view import recording
from fusionocc_core.commands.view_predicting import PredictingSource, RenderingSource
from fusionocc_core.commands.view_sources import SourceOptions, open_kind
from fusionocc_core.data.pipeline import prepare
from fusionocc_core.engine.rendered_views import ray_camera, render_view
from fusionocc_core.grids import OCC3D_LABELS
from fusionocc_core.presets import load_model
from fusionocc_core.viz.export import write_volume
from fusionocc_core.viz.gaussian_files import write_ply
from fusionocc_core.viz.rerun_log import RerunLog
from fusionocc_core.viz.web_view import web_view


class Interrupted(Frames):
    """Somebody presses Ctrl-C after the last frame."""

    def __iter__(self):
        yield from self.frames
        raise KeyboardInterrupt


class Recorder:
    """Stands in for a rerun stream: remembers what is logged under which time."""

    def __init__(self):
        self.logged = []
        self.layouts = 0
        self.times = {}

    def set_time(self, timeline, **value):
        self.times[timeline] = value

    def log(self, entity, *content):
        self.logged.append((entity, type(content[0]).__name__))

    def send_blueprint(self, blueprint, **options):
        self.layouts += 1

    def take(self):
        logged, self.logged = self.logged, []
        return logged


class TestRerunLog:
    def test_everything_of_a_moment_is_logged(self):
        stream = Recorder()
        RerunLog(stream).add(moment())
        entities = {entity for entity, _ in stream.logged}
        assert {
            "world/ego", "world/path", "world/cameras/CAM_FRONT", "world/cameras/CAM_BACK", "world/ego/lidar",
            "world/ego/prediction/bus", "world/ego/truth/car", "world/ego/difference/wrong_class", "world/ego/boxes",
            "latency/network", "latency/total",
        } <= entities  # fmt: skip
        assert "world/ego/truth/bus" not in entities
        assert "world/ego/prediction/free" not in entities
        assert set(stream.times) == {"stamp", "frame"}
        assert stream.layouts == 1

    def test_only_what_changed_is_sent(self):
        stream = Recorder()
        log = RerunLog(stream)
        assert log.add_volume("prediction", occupancy()) > 500
        stream.take()
        assert log.add_volume("prediction", occupancy()) == 0
        assert stream.take() == []
        moved = labels()
        moved[22:28, 14:18, 1:4] = moved[4:6, 26:28, 1:7] = OCC3D_LABELS.free
        moved[20:26, 14:18, 1:4] = CAR
        sent = log.add_volume("prediction", occupancy(moved))
        assert sent == 6 * 4 * 3 - 4 * 2 * 2
        assert set(stream.take()) == {
            ("world/ego/prediction/car", "Boxes3D"),
            ("world/ego/prediction/vegetation", "Clear"),
        }

    def test_labels_without_a_class_and_other_palettes(self):
        stream = Recorder()
        volume = np.full(GRID.shape, OCC3D_LABELS.free, np.uint8)
        volume[3, 3, 3] = 77
        RerunLog(stream).add_volume("truth", occupancy(volume))
        assert stream.take() == [("world/ego/truth/label_77", "Boxes3D")]
        RerunLog(stream, palette="colorblind").add(moment())
        strange = replace(OCC3D_LABELS, names=("cow", *OCC3D_LABELS.names[1:]))
        farm = moment(truth=None, prediction=replace(occupancy(), label_set=strange))
        with pytest.raises(ValueError, match="no colour for cow"):
            RerunLog(stream, palette="nuscenes").add(farm)

    def test_the_layout_grows_with_what_there_is_and_never_jumps_back(self):
        stream = Recorder()
        log = RerunLog(stream)
        bare = moment(prediction=None, latencies_s={})
        for frame, layouts in (
            (bare, 1),
            (replace(bare, notes=("CAM_LEFT: no message",)), 2),
            (moment(1), 3),  # a camera that fails for a moment must not turn the user's view
            (moment(2, truth=None, sensors=replace(moment().sensors, cameras=moment().sensors.cameras[:1])), 3),
            (moment(3), 3),
        ):
            log.add(frame)
            assert stream.layouts == layouts

    def test_what_is_gone_is_cleared(self):
        stream = Recorder()
        log = RerunLog(stream)
        log.add(moment(notes=("CAM_LEFT: no message",)))
        assert ("notes", "TextLog") in stream.take()
        sensors = replace(moment().sensors, cameras=moment().sensors.cameras[:1], lidar=None)
        log.add(moment(1, truth=None, boxes=(), sensors=sensors))
        gone = {entity for entity, kind in stream.take() if kind == "Clear"}
        assert gone == {
            "world/ego/truth", "world/ego/difference", "world/ego/boxes", "world/ego/lidar", "world/cameras/CAM_BACK",
        }  # fmt: skip
        log.add(moment(2))
        logged = dict(stream.take())
        assert "Clear" not in logged.values()
        assert {"world/ego/truth/car", "world/cameras/CAM_BACK", "world/ego/lidar"} <= set(logged)

    def test_gaussians_and_what_the_answer_looks_like(self):
        stream = Recorder()
        (frame,) = RenderingSource(Frames(moment(prediction=with_gaussians())), 32)
        RerunLog(stream).add(frame)
        logged = dict(stream.logged)
        assert logged["world/ego/gaussians"] == "Ellipsoids3D"
        for camera in ("CAM_FRONT", "CAM_BACK"):
            assert logged[f"rendered/{camera}/depth"] == logged[f"rendered/{camera}/classes"] == "Image"

    def test_a_recording_holds_it(self, tmp_path):
        from rerun.dataframe import load_recording

        with recording() as rec:
            rec.save(tmp_path / "a.rrd")
            log = RerunLog(rec)
            for step in range(2):
                log.add(moment(step))
        table = (
            load_recording(tmp_path / "a.rrd").view(index="frame", contents="/world/ego/truth/car").select().read_all()
        )
        assert table.column("frame").to_pylist() == [0]  # the car is where it was in the second frame
        assert table.column("/world/ego/truth/car:HalfSize3D").to_pylist()[0] == [[0.25, 0.25, 0.25]]
        centers = table.column("/world/ego/truth/car:PoseTranslation3D").to_pylist()[0]
        assert len(centers) == 6 * 4 * 3 - 4 * 2 * 2


@pytest.fixture
def predictions(tmp_path):
    """A folder as `fusionocc predict` leaves it, without a note of its data."""
    folder = tmp_path / "predictions" / "scene-1"
    folder.mkdir(parents=True)
    for stamp in (20, 3):
        confident = replace(occupancy(), confidence=np.full(GRID.shape, 200, np.uint8))
        write_volume(folder / f"{stamp}.npz", confident)
    return folder.parent


class TestRendering:
    def test_a_wall_is_where_the_camera_sees_it(self):
        (frame,) = RenderingSource(Frames(moment(prediction=occupancy())), 64)
        view = frame.rendered["CAM_FRONT"]
        assert view.distance_HW.shape == view.labels_HW.shape == (36, 64)
        # The car's rear is 3 m ahead of the middle, the camera 1 m; the ray leads down by 0.39 m a metre.
        assert view.labels_HW[30, 32] == CAR
        assert view.distance_HW[30, 32] == pytest.approx(2.0 * np.hypot(1, 0.39), abs=0.3)
        assert view.labels_HW[-1, 0] == ROAD
        assert (view.labels_HW[0] == OCC3D_LABELS.free).all()
        assert np.isnan(view.distance_HW[0]).all()
        assert CAR not in frame.rendered["CAM_BACK"].labels_HW

    def test_voxels_in_the_lidars_frame_lie_where_the_lidar_is(self):
        straight = moment(prediction=occupancy())
        (expected,) = RenderingSource(Frames(straight), 32)
        turn = np.array([[0, -1.0, 0], [1, 0, 0], [0, 0, 1]])
        lidar2ego = np.eye(4)
        lidar2ego[:3, :3] = turn.T
        turned = replace(
            occupancy(np.ascontiguousarray(np.rot90(labels(), 1, axes=(0, 1)))), grid=replace(GRID, frame="lidar")
        )
        sensors = replace(straight.sensors, lidar=replace(straight.sensors.lidar, lidar2ego=lidar2ego))
        (found,) = RenderingSource(Frames(moment(prediction=turned, sensors=sensors)), 32)
        for name, view in expected.rendered.items():
            np.testing.assert_array_equal(found.rendered[name].labels_HW, view.labels_HW)
            np.testing.assert_allclose(found.rendered[name].distance_HW, view.distance_HW, atol=1e-3)
        blind = moment(prediction=turned, sensors=replace(sensors, lidar=None))
        with pytest.raises(ValueError, match="without LiDAR does not say"):
            list(RenderingSource(Frames(blind), 32))

    def test_what_cannot_be_rendered_stays_as_it_is(self):
        frames = (moment(prediction=None), moment(sensors=None))
        assert [frame.rendered for frame in RenderingSource(Frames(*frames), 32)] == [{}, {}]

    def test_a_networks_own_density_is_rendered(self, tmp_path):
        write_tree(tmp_path, image_size=(96, 54))
        model = load_model("uniocc-tiny")
        source = open_kind(SourceOptions(source=str(tmp_path), limit=1))
        (frame,) = PredictingSource(source, model, "cpu", render_width=16)
        sensors = frame.sensors
        with torch.inference_mode():
            outputs = model(prepare(sensors, model.config.inputs, model.config.grid))
        assert outputs.density is not None
        expected = render_view(outputs, model.config, ray_camera(sensors.cameras[2]), sensors.ego2global, width=16)
        found = frame.rendered[sensors.cameras[2].name]
        np.testing.assert_array_equal(found.labels_HW, expected.labels_HW)
        np.testing.assert_allclose(found.distance_HW, expected.distance_HW, atol=1e-4)
        assert frame.latencies_s["network"] > 0


class TestCommands:
    @pytest.fixture(autouse=True)
    def no_display(self, monkeypatch):
        monkeypatch.delenv("DISPLAY", raising=False)
        monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)

    @staticmethod
    def said(capsys):
        return " ".join(capsys.readouterr().err.split())

    def test_a_folder_of_predictions(self, predictions, tmp_path, capsys):
        picture, record, video = (tmp_path / name for name in ("a.png", "a.rrd", "a.mp4"))
        assert main(["view", str(predictions), "--screenshot", str(picture)]) == 0
        assert cv2.imread(str(picture)).shape == (1080, 1920, 3)
        assert main(["view", str(predictions), "--save", str(record), "--palette", "flashocc"]) == 0
        assert record.stat().st_size > 10_000
        assert main(["video", str(predictions), "--out", str(video), "--fps", "4"]) == 0
        assert "written" in self.said(capsys)
        reader = cv2.VideoCapture(str(video))
        assert reader.get(cv2.CAP_PROP_FRAME_COUNT) == 2
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "a.png", "a.rrd", "predictions"]

    def test_gaussians_beside_the_volumes_are_shown(self, predictions, tmp_path, capsys):
        before = self.picture(predictions, tmp_path / "before.png")
        known = with_gaussians()
        write_ply(predictions / "scene-1" / "3.ply", known.gaussians, known.label_set, "ego")
        after = self.picture(predictions, tmp_path / "after.png")
        assert np.abs(before.astype(int) - after).max(axis=2).mean() > 5  # a third view beside the others
        strange = replace(known.gaussians, labels_G=np.full(len(known.gaussians), 77, np.uint8))
        write_ply(predictions / "scene-1" / "3.ply", strange, replace(known.label_set, colors=((0, 0, 0),) * 18), "ego")
        assert main(["view", str(predictions), "--screenshot", str(tmp_path / "no.png")]) == 2
        assert "3.ply: class 77 is none of 'occ3d'" in self.said(capsys)

    @staticmethod
    def picture(source, path):
        assert main(["view", str(source), "--limit", "1", "--screenshot", str(path)]) == 0
        return cv2.imread(str(path))

    def test_a_data_set(self, tmp_path, capsys):
        write_tree(tmp_path / "data")
        assert main(["view", str(tmp_path / "data"), "--start", "1", "--screenshot", str(tmp_path / "a.png")]) == 0
        assert (tmp_path / "a.png").stat().st_size > 10_000
        assert main(["view", str(tmp_path / "data"), "--start", "99", "--screenshot", str(tmp_path / "a.png")]) == 2
        assert "--start 99: there are only" in self.said(capsys)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["{there}"], "there is no display for the viewer's window"),
            (["{there}", "--web", "--save", "a.rrd"], "--web and --save: choose one"),
            (["{there}", "--save", "a.txt"], "ends in .rrd"),
            (["{there}", "--screenshot", "no/such/a.png"], "there is no folder"),
            (["no/such/source", "--web"], "no such file or folder; expected a data set"),
            (["{empty}", "--web"], "cannot be shown; expected a data set"),
            (["{there}", "--web", "--palette", "rainbow"], "--palette rainbow: expected one of fusionocc"),
            (["{there}", "--web", "--limit", "0"], "--limit 0: expected at least 1"),
            (["{there}", "--web", "--render", "--render-width", "1"], "--render-width 1: expected at least 2 rays"),
            (["{there}", "--web", "--render"], "predictions alone says nothing of cameras; give its data"),
            (["{data}", "--web", "--render"], "data has no predictions to look at; predict with --preset NAME"),
            (["{there}", "--web", "--scene", "scene-9"], "no volume of scene scene-9"),
            (["{there}", "--web", "--data", "no/such/data"], "no/such/data: the data set"),
            (["{there}", "--web", "--bind", "203.0.113.7"], "--bind 203.0.113.7"),
            (["{there}", "--web", "--port", "99999"], "--port 99999: expected 0"),
            (["{there}", "--web", "--preset", "flashfusion-mini"], "cannot be predicted; give its data with --data"),
        ],
    )
    def test_mistakes_are_one_line_and_exit_code_two(self, arguments, message, predictions, tmp_path, capsys):
        (tmp_path / "empty").mkdir()
        known = {"there": predictions, "empty": tmp_path / "empty", "data": tmp_path / "data"}
        if "{data}" in arguments:
            write_tree(known["data"], scenes={"lot": 1}, cameras={})
        assert main(["view", *(argument.format(**known) for argument in arguments), "--no-browser"]) == 2
        assert message in self.said(capsys)

    @pytest.mark.parametrize("command", [("view", "--save", "a.rrd"), ("video", "--out", "a.mp4")], ids=str)
    def test_ctrl_c_ends_a_live_source_and_leaves_a_whole_file(self, command, tmp_path, monkeypatch):
        name, option, file = command
        source = Interrupted(moment(), moment(1))
        monkeypatch.setattr(f"fusionocc_core.commands.{name}.open_source", lambda args: source)
        source.total = None
        assert main([name, "ros", option, str(tmp_path / file)]) == 0
        assert (tmp_path / file).stat().st_size > 1000
        (tmp_path / file).unlink()
        source.total = 9  # not live: it was not wanted to the end
        assert main([name, "ros", option, str(tmp_path / file)]) == 130
        assert list(tmp_path.iterdir()) == []

    def test_damaged_predictions(self, predictions, tmp_path, capsys):
        (predictions / "scene-1" / "3.npz").write_bytes(b"")
        assert main(["view", str(predictions), "--save", str(tmp_path / "a.rrd")]) == 2
        assert "3.npz: not a whole volume" in self.said(capsys)
        assert not list(tmp_path.glob("*a*.rrd"))
        assert main(["video", str(predictions), "--out", str(tmp_path / "a.mp4")]) == 2
        assert not list(tmp_path.glob("*a*.mp4"))


class TestWebView:
    def test_a_port_that_is_taken_is_named(self):
        import socket

        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            with pytest.raises(OSError, match=f"--port {port}: .*choose another"), web_view(port=port, data_port=0):
                pass

    def test_it_listens_on_loopback_alone_and_ends_with_the_command(self, predictions):
        command = [sys.executable, "-m", "fusionocc_core.cli", "view", str(predictions), "--web", "--no-browser"]
        process = subprocess.Popen(
            [*command, "--port", "0", "--data-port", "0"], stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            line = process.stderr.readline()
            assert line.startswith("open http://127.0.0.1:"), line + process.stderr.read()
            descendants = family_of(process.pid)
            listening = listening_addresses(descendants)
            assert len(listening) >= 2
            assert set(listening) == {"127.0.0.1"}
        finally:
            process.send_signal(2)
            assert process.wait(60) == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in descendants)


def family_of(leader):
    """The process and all that it has started."""
    tasks = Path(f"/proc/{leader}/task").iterdir()
    children = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
    return [leader, *(pid for child in children for pid in family_of(child))]


def listening_addresses(family):
    """IPv4 addresses on which one of the processes listens; an IPv6 one counts as all."""
    sockets = set()
    for pid in family:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            target = os.readlink(link)
            if target.startswith("socket:["):
                sockets.add(target[8:-1])
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in sockets:
                raw = bytes.fromhex(fields[1].split(":")[0])
                found.append(".".join(str(b) for b in reversed(raw)) if len(raw) == 4 else "all")
    return found
