"""A clean colcon workspace, as a user would make it, and a plain wheel: is everything where ROS looks for it?"""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def copy_of_the_checkout(to):
    """What git would clone, uncommitted changes included."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


def start(command, cwd, **environment):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AMENT_", "CMAKE_", "COLCON_"))}
    env = {**kept, "PATH": f"{BIN}:{os.environ['PATH']}", **environment}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=400)


def run(command, cwd, **environment):
    done = start(command, cwd, **environment)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workspace")
    copy_of_the_checkout(folder / "src" / "fusionocc")
    wheels = {"AMENT_PREFIX_PATH": sys.prefix, "CMAKE_PREFIX_PATH": sys.prefix}
    include = "-DCMAKE_PROJECT_INCLUDE=cmake/ros_wheels.cmake"
    paths = ["--base-paths", "src", "src/fusionocc/fusionocc_msgs"]
    run([str(BIN / "colcon"), "build", *paths, "--cmake-args", include], folder, **wheels)
    return folder


def in_workspace(folder, script):
    return run(["bash", "-c", f". install/setup.bash && {script}"], folder, AMENT_PREFIX_PATH=sys.prefix).strip()


@pytest.mark.slow
@pytest.mark.ros
def test_colcon_builds_both_packages_and_everything_is_found(workspace):
    share = in_workspace(
        workspace, "python -c 'import ament_index_python as a; print(a.get_package_share_directory(\"fusionocc_ros\"))'"
    )
    assert Path(share) == workspace / "install/fusionocc_ros/share/fusionocc_ros"
    for name in ("package.xml", "launch/occ.launch.py", "launch/replay.launch.py", "config/occ.yaml", "rviz/occ.rviz"):
        assert (Path(share) / name).is_file(), name
    message = in_workspace(workspace, "python -c 'import fusionocc_msgs.msg as m; print(m.__file__)'")
    assert Path(message).is_relative_to(workspace / "install/fusionocc_msgs")


@pytest.mark.slow
@pytest.mark.ros
def test_executables_after_colcon(workspace):
    assert Path(in_workspace(workspace, "command -v fusionocc")) == workspace / "install/fusionocc_ros/bin/fusionocc"
    assert "fusionocc 0." in in_workspace(workspace, "fusionocc --version")
    launcher = workspace / "install/fusionocc_ros/lib/fusionocc_ros/occ_node"
    assert os.access(launcher, os.X_OK)
    # The real node starts from there: it knows its parameters, and says what is wrong with this one.
    command = f". install/setup.bash && {launcher} --ros-args -p preset:=fusionocc-tinny"
    node = start(["bash", "-c", command], workspace, AMENT_PREFIX_PATH=sys.prefix)
    assert node.returncode == 1
    assert "unknown preset 'fusionocc-tinny': did you mean fusionocc-tiny" in node.stderr


@pytest.mark.slow
@pytest.mark.ros
def test_colcon_without_base_paths_would_miss_the_messages(workspace):
    plain = run([str(BIN / "colcon"), "list", "--names-only"], workspace).split()
    assert plain == ["fusionocc_ros"]
    helped = run([str(BIN / "colcon"), "list", "--names-only"], workspace / "src" / "fusionocc").split()
    assert sorted(helped) == ["fusionocc_msgs", "fusionocc_ros"]


def test_wheel_holds_the_share_folder_and_the_launcher(tmp_path):
    copy_of_the_checkout(tmp_path / "source")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    run([*pip, "-w", str(tmp_path / "wheels"), "."], tmp_path / "source")
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        modes = {i.filename.split(".data/data/")[-1]: i.external_attr >> 16 for i in archive.infolist()}
        entry_points = next(n for n in archive.namelist() if n.endswith("entry_points.txt"))
        scripts = archive.read(entry_points).decode()
    assert modes["lib/fusionocc_ros/occ_node"] & 0o111, "the launcher must stay executable"
    assert "share/ament_index/resource_index/packages/fusionocc_ros" in modes
    for name in ("launch/occ.launch.py", "config/occ.yaml", "config/fastdds_shm.xml", "rviz/occ.rviz", "package.xml"):
        assert f"share/fusionocc_ros/{name}" in modes, name
    assert "fusionocc = fusionocc_core.cli:main" in scripts
    assert "occ_node = fusionocc_ros.node:main" in scripts


def test_versions_are_the_same_everywhere():
    import fusionocc_core

    manifest = (ROOT / "package.xml").read_text()
    assert f"<version>{fusionocc_core.__version__}</version>" in manifest
    assert f'version="{fusionocc_core.__version__}"' in (ROOT / "setup.py").read_text()
    for name in ("package.xml", "pyproject.toml"):
        assert fusionocc_core.__version__ in (ROOT / "fusionocc_msgs" / name).read_text(), name
