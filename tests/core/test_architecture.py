"""Rules about imports that no linter knows: the core is free of ROS, imports run downwards, importing does nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "fusionocc_core"

# From the top down; a module may import from its own floor and from those below it.
FLOORS = (
    ("cli", "commands"),
    ("fleet",),
    ("export",),
    ("engine",),
    ("baselines",),
    ("predictor", "warm_up", "stream_predictor"),
    ("presets",),
    ("simulation",),
    ("labelling",),
    ("models", "data", "viz"),
    ("layers", "metrics"),
    ("structures",),
    ("grids",),
    ("ops", "losses", "checkpoints", "geometry", "gaussians"),
    ("process", "side_by_side", "stream_pose"),
)
FLOOR_OF = {name: number for number, names in enumerate(reversed(FLOORS)) for name in names}
ROS_PACKAGES = {"rclpy", "fusionocc_ros", "fusionocc_msgs", "sensor_msgs", "std_msgs", "rosbags", "tf2_msgs"}


def modules():
    return sorted(path for path in CORE.rglob("*.py") if path != CORE / "__init__.py")


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def floor(dotted):
    part = dotted.split(".")[1]
    assert part in FLOOR_OF, f"{dotted}: say in FLOORS which floor it belongs to"
    return FLOOR_OF[part]


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(CORE)))
def test_imports_run_downwards_and_never_to_ros(path):
    own = floor(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for name, line in imported(path):
        assert name.split(".")[0] not in ROS_PACKAGES, f"{path}:{line}: the core must not import {name}"
        if name.startswith("fusionocc_core.") and name.split(".")[1] in FLOOR_OF:
            assert floor(name) <= own, f"{path}:{line}: {name} lies on a higher floor"


def test_every_module_imports_with_the_core_requirements_alone():
    """Extras (data set tools, simulation, optional backends) are loaded at use, never at import; nothing is printed."""
    names = [".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in modules()]
    program = """
import importlib, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ModuleNotFoundError(name + " is blocked in this test")
sys.meta_path.insert(0, Refuse())
for name in {names}:
    importlib.import_module(name)
""".format(
        blocked={
            "nuscenes",
            "embreex",
            "spconv",
            "torch_scatter",
            "scipy",
            "matplotlib",
            "onnx",
            "onnxscript",
            "onnxruntime",
            "openvino",
            "nncf",
            "ray",
            "pandas",
            "timm",
            "torchvision",
        }
        | ROS_PACKAGES,
        names=names,
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def test_public_names_stay_few():
    import fusionocc_core

    assert len(fusionocc_core.__all__) < 30
    for name in fusionocc_core.__all__:
        assert getattr(fusionocc_core, name) is not None


def test_no_file_grows_out_of_hand():
    long = {
        str(path.relative_to(ROOT)): lines
        for folder in ("fusionocc_core", "fusionocc_ros", "training", "launch")
        for path in (ROOT / folder).rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > 400
    }
    assert not long
