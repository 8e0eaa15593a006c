"""`fusionocc predict` with workers: every keyframe once, whoever dies."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from fleet_stub import Stub, make_job, results, work
from hypothesis import given
from hypothesis import strategies as st
from nuscenes_tree import write_tree

from fusionocc_core import cli
from fusionocc_core.commands import predict_fleet
from fusionocc_core.fleet import claims as claims_module
from fusionocc_core.fleet.claims import Claims
from fusionocc_core.fleet.local import run_local
from fusionocc_core.fleet.manifest import check_manifest
from fusionocc_core.fleet.owner import this_process
from fusionocc_core.fleet.run import finish, prepare
from fusionocc_core.fleet.store import STATE, Store
from fusionocc_core.fleet.units import LONGEST_NAME, DataSet, cut, named_roots
from fusionocc_core.fleet.watch import Watch
from fusionocc_core.fleet.worker import Stopped, Worker

KILLS = 8
SCENES = {"lot": 7, "road/1": 4}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Two scenes of one camera."""
    return write_tree(tmp_path_factory.mktemp("logs"), scenes=SCENES, cameras={"CAM_FRONT": 0.0}, image_size=(32, 18))


@pytest.fixture(scope="module")
def undisturbed(tree, tmp_path_factory):
    """The results of one worker that nobody disturbs."""
    out = tmp_path_factory.mktemp("whole")
    job = make_job(out, tree.root)
    run_alone(job)
    return results(out)


def run_alone(job, **options):
    prepare(job)
    Worker(job, job.predictor("cpu"), **options).run()
    return finish(job)


class FakeFrames:
    """Scenes of some lengths."""

    def __init__(self, lengths):
        self.scenes = [f"s{n}" for n, length in enumerate(lengths) for _ in range(length)]

    def __len__(self):
        return len(self.scenes)

    def keyframe(self, index):
        return SimpleNamespace(scene=self.scenes[index])


class TestUnits:
    @given(st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=4), min_size=1, max_size=3), st.integers(1, 12))
    def test_every_keyframe_is_in_one_unit_of_its_scene(self, lengths, most):
        data = [DataSet(name=f"d{n}", frames=FakeFrames(each)) for n, each in enumerate(lengths)]
        units = cut(data, most)
        covered = [(unit.data, index) for unit in units for index in range(unit.first, unit.stop)]
        assert covered == [(n, index) for n, one in enumerate(data) for index in range(len(one.frames))]
        assert len({unit.name for unit in units}) == len(units)
        for unit in units:
            assert 1 <= len(unit) <= most
            assert len(set(data[unit.data].frames.scenes[unit.first : unit.stop])) == 1

    def test_names_fit_files_whatever_scenes_are_called(self):
        frames = FakeFrames([2, 2])
        frames.scenes = ["a/../ü " * 60 + "1"] * 2 + ["a/../ü " * 60 + "2"] * 2
        names = {unit.name for unit in cut([DataSet(name="", frames=frames)], 2)}
        assert len(names) == 2
        assert all(len(name) <= LONGEST_NAME and "/" not in name for name in names)
        with pytest.raises(ValueError, match="--chunk 0"):
            cut([DataSet(name="", frames=frames)], 0)

    def test_data_sets_have_names_of_their_own(self, tmp_path):
        (tmp_path / "x=1").mkdir()
        assert list(named_roots([f"{tmp_path}/x=1"])) == [""]
        assert list(named_roots(["/logs/monday", "tue=/logs/2/monday"])) == ["monday", "tue"]
        assert list(named_roots(["only=/logs/monday"])) == ["only"]
        with pytest.raises(
            ValueError, match=r"/a/log and /b/log would both be called 'log'; name them: --data NAME=/b"
        ):
            named_roots(["/a/log", "/b/log"])
        with pytest.raises(ValueError, match=r"'\.\.' does not do as a name"):
            named_roots(["..=/a/log", "/b/log"])


def elsewhere(claims):
    """The same claims as a process of another machine sees them."""
    claims.owner = replace(claims.owner, machine="another", host="other")
    return claims


class TestClaims:
    def test_of_many_at_once_one_gets_the_unit(self, tmp_path):
        start, taken = threading.Barrier(8), []

        def race():
            claims = Claims(tmp_path)
            start.wait()
            taken.extend(unit for unit in map(str, range(20)) if claims.take(unit))

        threads = [threading.Thread(target=race) for _ in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert Counter(taken) == dict.fromkeys(map(str, range(20)), 1)
        assert not list(tmp_path.rglob(".*"))

    def test_a_unit_given_back_is_free_at_once(self, tmp_path):
        first, second = elsewhere(Claims(tmp_path)), Claims(tmp_path)
        claim = first.take("u")
        assert second.take("u") is None
        claim.beat(2)
        assert second.keyframes_in_work({"u", "v"}) == 2
        claim.release()
        assert second.take("u").number == 2
        assert not claim.is_newest()
        assert first.take("u") is None

    def test_a_dead_process_of_this_machine_holds_nothing(self, tmp_path):
        program = (
            f"import sys; sys.path[:0] = {sys.path}\nfrom pathlib import Path\n"
            "from fusionocc_core.fleet.claims import Claims\n"
            f"Claims(Path({str(tmp_path)!r})).take('u'); print('taken', flush=True); input()"
        )
        holder = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert holder.stdout.readline() == b"taken\n"
        claims = Claims(tmp_path)
        assert claims.take("u") is None
        holder.kill()
        deadline = time.monotonic() + 20
        while (claim := claims.take("u")) is None:  # not yet fetched by its parent: a zombie is dead, too
            assert time.monotonic() < deadline
        assert claim.number == 2
        holder.communicate()

    def test_a_number_of_a_process_that_is_used_again_is_another_process(self):
        me = this_process()
        assert not me.is_known_to_be_dead()
        assert replace(me, started="1").is_known_to_be_dead()
        assert not replace(me, started="1", machine="another").is_known_to_be_dead()
        assert not replace(me, started="1", machine="").is_known_to_be_dead()

    def test_silence_of_another_machine_is_measured_on_the_own_clock(self, tmp_path, monkeypatch):
        now = 1000.0
        monkeypatch.setattr(claims_module.time, "monotonic", lambda: now)
        claim = elsewhere(Claims(tmp_path)).take("u")
        other = Claims(tmp_path, lease_s=60)
        assert other.take("u") is None
        now += 59
        claim.beat(1)
        assert other.take("u") is None
        now += 59
        assert other.take("u") is None
        now += 2
        assert other.take("u").number == 2
        with pytest.raises(ValueError, match="--lease 0"):
            Claims(tmp_path, lease_s=0)


class TestWorkers:
    def test_kill_9_at_random_moments_loses_and_doubles_nothing(self, tree, undisturbed, tmp_path, spawner):
        draw, log = random.Random(3), tmp_path / "log"
        job = make_job(tmp_path / "out", tree.root, stub=Stub(pause_s=0.03, log=log))
        prepare(job)
        kills = 0
        while kills < KILLS and len(results(job.out)) < 11:
            pair = [spawner.Process(target=work, args=(job, number, 2)) for number in range(2)]
            [process.start() for process in pair]
            before = len(results(job.out))
            deadline = time.monotonic() + 60
            while len(results(job.out)) == before:
                assert time.monotonic() < deadline
                time.sleep(0.001)
            time.sleep(draw.uniform(0, 0.03))
            for process in pair[: draw.choice([1, 2])]:
                os.kill(process.pid, signal.SIGKILL)
                process.join()
                kills += 1
            if pair[1].is_alive() and kills < KILLS:
                os.kill(pair[1].pid, signal.SIGKILL)
            pair[1].join(60)
        last = spawner.Process(target=work, args=(job, 0, 1))
        last.start()
        last.join(60)
        summary = finish(job)
        assert kills >= 2
        assert check_manifest(job.out) == len(summary.keyframes) == 11
        assert results(job.out) == undisturbed
        predicted = Counter(line.split()[1] for line in log.read_text().splitlines())
        assert set(predicted) == {keyframe.token for keyframe in summary.keyframes}
        assert all(os.stat(job.out / name).st_nlink == 1 for name in undisturbed)
        assert not list((job.out / STATE / "partial").iterdir())

    def test_the_unit_of_a_killed_worker_goes_to_the_other_in_the_same_run(self, tree, undisturbed, tmp_path, caplog):
        job = make_job(tmp_path / "out", tree.root, chunk=4, stub=Stub(pause_s=0.3, log=tmp_path / "log"))
        prepare(job)
        killed = threading.Thread(target=kill_the_first, args=(tmp_path / "log",))
        killed.start()
        assert run_local(job, 2) == 0
        killed.join()
        assert "was killed by signal 9; its unit goes to the others" in caplog.text
        summary = finish(job)
        assert (summary.failed, len(summary.keyframes)) == ([], 11)
        assert results(job.out) == undisturbed
        lines = (tmp_path / "log").read_text().splitlines()
        assert len({line.split()[0] for line in lines}) == 2
        assert max(Counter(line.split()[1] for line in lines).values()) <= 2

    def test_workers_start_together_however_large_the_job_is(self, tree, tmp_path):
        """A worker imports for seconds before it reads what it is to do; the next one does not wait for that."""
        stub = Stub(pause_s=0.3, starts=tmp_path / "starts", ballast=bytes(2**21))
        job = make_job(tmp_path / "out", tree.root, chunk=1, stub=stub)
        prepare(job)
        assert run_local(job, 2) == 0
        assert finish(job).failed == []
        starts = [int(line) / os.sysconf("SC_CLK_TCK") for line in stub.starts.read_text().splitlines()]
        assert len(starts) == 2
        assert abs(starts[1] - starts[0]) < 0.7

    def test_a_worker_thought_dead_that_goes_on_changes_nothing(self, tree, tmp_path):
        """Its unit was taken over meanwhile; a file that is there stays the one that was counted."""
        job = make_job(tmp_path / "out", tree.root, chunk=7, lease_s=3600)
        prepare(job)
        quick = replace(job, lease_s=0.01, predictor=Stub(label=9))
        sleeper = Worker(job, None)
        elsewhere(sleeper.claims)

        def predictor(frame):
            if not Store(job.out).done():
                Worker(quick, quick.predictor("cpu")).run()
            return Stub(label=4)("cpu")(frame)

        sleeper.predictor = predictor
        sleeper.run()
        finish(job)
        assert check_manifest(job.out) == 11
        alone = make_job(tmp_path / "nine", tree.root, stub=Stub(label=9))
        run_alone(alone)
        assert results(job.out) == results(alone.out)

    def test_a_stop_gives_the_unit_back_and_the_next_run_goes_on(self, tree, undisturbed, tmp_path):
        job = make_job(tmp_path / "out", tree.root, chunk=5, stub=Stub(log=tmp_path / "log"))
        stops = iter([False] * 3 + [True])
        with pytest.raises(Stopped):
            run_alone(job, asked_to_stop=lambda: next(stops))
        assert len(results(job.out)) == 3
        with pytest.raises(ValueError, match="is not done; start the same command again"):
            finish(job)
        watch = Watch(job, lambda done: None)
        assert watch.keyframes_done() == 0
        summary = run_alone(job)
        assert watch.keyframes_done() == 11
        assert [keyframe.earlier for keyframe in summary.keyframes] == [True] * 3 + [False] * 8
        assert results(job.out) == undisturbed
        assert len((tmp_path / "log").read_text().splitlines()) == 11
        run_alone(make_job(tmp_path / "out", tree.root, chunk=2, stub=Stub(log=tmp_path / "log")))
        assert len((tmp_path / "log").read_text().splitlines()) == 11  # cut in another way, nothing is done anew

    def test_results_that_vanished_or_changed_are_noticed(self, tree, undisturbed, tmp_path):
        job = make_job(tmp_path / "out", tree.root)
        run_alone(job)
        name = sorted(undisturbed)[4]
        victim = job.out / name
        victim.write_bytes(undisturbed[name][:-1] + b"!")
        with pytest.raises(ValueError, match=rf"1 files are missing or changed: {name}"):
            check_manifest(job.out)
        victim.unlink()
        with pytest.raises(ValueError, match=rf"1 files are missing or of another size: {name}"):
            finish(job)
        assert prepare(job) == len(job.units) - 1
        run_alone(job)
        assert results(job.out) == undisturbed
        with pytest.raises(FileNotFoundError, match=r"manifest\.jsonl: no such file"):
            check_manifest(tmp_path)

    def test_workers_that_all_end_leave_a_sentence(self, tree, tmp_path):
        job = make_job(tmp_path / "out", tree.root)
        (tmp_path / "out").mkdir()
        prepare(job)
        (job.out / "lot").write_text("in the way of a folder")
        with pytest.raises(ValueError, match=r"5 of 5 units are left \(worker 0 \(process \d+\) ended with code 2\)"):
            run_local(replace(job, units=job.units), 1)
        with pytest.raises(ValueError, match="--workers 0"):
            run_local(job, 0)


def kill_the_first(log):
    """Kill -9 the first worker that has predicted a keyframe."""
    deadline = time.monotonic() + 120
    while not log.exists() or not log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(int(log.read_text().split()[0]), signal.SIGKILL)


@pytest.fixture
def in_this_process(monkeypatch):
    """`fusionocc predict` whose workers run here, with a stub for a network."""

    def here(job, workers):
        for number in range(workers):
            Worker(job, job.predictor("cpu"), place=(number, workers)).run()
        return 0

    monkeypatch.setattr("fusionocc_core.fleet.local.run_local", here)
    monkeypatch.setattr(predict_fleet, "make_predictor", lambda preset, checkpoint, device: Stub()(device))


def predict(*arguments):
    return cli.main(["predict", "--no-pictures", *map(str, arguments)])


def test_bad_keyframes_are_reported_under_their_tokens_and_tried_again(tmp_path, in_this_process, capsys):
    tree = write_tree(tmp_path / "d", scenes={"lot": 4}, cameras={"CAM_FRONT": 0.0}, image_size=(32, 18))
    picture, cloud = tree.file("CAM_FRONT", 1), tree.file("LIDAR_TOP", 3)
    whole = picture.read_bytes()
    picture.write_bytes(whole[:100])
    cloud.rename(tmp_path / "cloud")
    options = ("--data", tree.root, "--out", tmp_path / "out", "--workers", 2)
    assert predict(*options) == 1
    tokens = [row["token"] for row in sorted(tree.rows("sample"), key=lambda row: row["timestamp"])]
    failed = {line.split()[1]: line for line in capsys.readouterr().out.splitlines() if line.startswith("failed ")}
    assert list(failed) == [tokens[1], tokens[3]]
    assert "(lot 15" in failed[tokens[1]]
    assert "is truncated" in failed[tokens[1]]
    assert str(cloud) in failed[tokens[3]]
    listed = [json.loads(line) for line in (tmp_path / "out/manifest.jsonl").read_text().splitlines()]
    assert [(one["token"], len(one["files"]), bool(one["error"])) for one in listed] == [
        (tokens[0], 1, False), (tokens[1], 0, True), (tokens[2], 1, False), (tokens[3], 0, True),
    ]  # fmt: skip
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/lot").glob("*.npz")}
    picture.write_bytes(whole)
    (tmp_path / "cloud").rename(cloud)
    assert predict(*options) == 0
    assert check_manifest(tmp_path / "out") == 4
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())


def test_several_data_sets_and_what_is_refused(tree, tmp_path, in_this_process, capsys):
    other = write_tree(tmp_path / "lots", scenes={"lot": 2}, cameras={"CAM_FRONT": 0.0}, image_size=(32, 18))
    out = tmp_path / "out"
    options = ("--data", f"monday={tree.root}", other.root, "--out", out)
    assert predict(*options) == 0
    assert {"monday/lot", "monday/road/1", "lots/lot"} == {name.rpartition("/")[0] for name in results(out)}
    assert check_manifest(out) == 13
    sums = subprocess.run(["sha256sum", "-c", "--quiet", "manifest.sha256"], cwd=out, check=False)
    assert sums.returncode == 0
    capsys.readouterr()
    for wrong, message in (
        (("--engine", "torchrun"), "was not started by torchrun; start it as `torchrun --nproc-per-node 4"),
        (("--engine", "torchrun", "--workers", 2), "--workers 2: with --engine torchrun its --nproc-per-node"),
        (("--ray-address", "auto"), "--ray-address auto: goes with --engine ray"),
        (("--threads", 0), "--threads 0"),
        (("--lease", -1), "--lease -1"),
        (("--cameras", "CAM_NONE"), "CAM_NONE"),
        (("--preset", "flashfusion-r50"), "preset was flashfusion-mini, is flashfusion-r50"),
    ):
        assert predict(*options, *wrong) == 2
        assert message in capsys.readouterr().err
    assert predict(*options, "--preset", "flashfusion-r50", "--overwrite") == 0
    assert check_manifest(out) == 13


def test_what_a_run_without_workers_left_is_taken_as_it_is(tree, tmp_path, in_this_process, monkeypatch):
    monkeypatch.setattr("fusionocc_core.predictor.Predictor", lambda *arguments, **options: Stub(label=9)("cpu"))
    options = ("--data", tree.root, "--out", tmp_path / "out")
    assert predict(*options, "--scene", "lot") == 0
    assert predict(*options, "--workers", 1) == 0
    out = tmp_path / "out"
    by_scene = {scene: {int(np.load(p)["labels"].flat[0]) for p in (out / scene).glob("*.npz")} for scene in SCENES}
    assert by_scene == {"lot": {9}, "road/1": {4}}
    records = [json.loads(line) for line in (tmp_path / "out/manifest.jsonl").read_text().splitlines()]
    assert [record["earlier"] for record in records] == [True] * 7 + [False] * 4
    assert check_manifest(out) == 11


@pytest.mark.slow
def test_torchrun_and_plain_runs_write_the_same(tmp_path):
    tree = write_tree(tmp_path / "d", scenes={"lot": 3}, cameras={"CAM_FRONT": 0.0, "CAM_BACK": 180.0})
    plain = ("--data", str(tree.root), "--no-pictures", "--device", "cpu")
    assert cli.main(["predict", *plain, "--out", str(tmp_path / "plain")]) == 0
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *("-m", "fusionocc_core.cli", "predict", *plain, "--out", str(tmp_path / "fleet")),
            *("--engine", "torchrun", "--chunk", "1"),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("keyframes a second") == 1  # one process speaks
    assert results(tmp_path / "fleet") == results(tmp_path / "plain")
    assert len(results(tmp_path / "fleet")) == check_manifest(tmp_path / "fleet") == 3


@pytest.mark.slow
def test_ray_gives_each_unit_to_one_actor(tree, undisturbed, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    from fusionocc_core.fleet.on_ray import run_on_ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    job = make_job(tmp_path / "out", tree.root, chunk=2, stub=Stub(log=tmp_path / "log"))
    prepare(job)
    assert run_on_ray(job, 2) == 0
    assert len(finish(job).keyframes) == check_manifest(job.out) == 11
    assert results(job.out) == undisturbed
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 11
    assert str(os.getpid()) not in {line.split()[0] for line in lines}
    with pytest.raises(ValueError, match="--workers 0"):
        run_on_ray(job, 0)
