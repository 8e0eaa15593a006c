"""What starting costs: which modules are loaded when, and that loading weights draws no others first."""

import json
import subprocess
import sys

import pytest
import torch

from fusionocc_core import load_model
from fusionocc_core.checkpoints import save_model, wants_fresh_weights, without_fresh_weights
from fusionocc_core.models.network import OccupancyNetwork
from fusionocc_core.presets import make_network, preset_config

HEAVY = {"torch", "cv2", "numpy", "PIL", "timm", "torchvision", "safetensors", "scipy", "nuscenes", "pandas", "ray"}
ROS = {"rclpy", "rosbags", "fusionocc_msgs"}

SMALL = (
    "flashfusion-mini",
    "fusionocc-tiny",
    "flashocc-tiny",
    "flashocc-tiny-panoptic",
    "uniocc-tiny",
    "gaussianformer-tiny",
    "gaussianformer2-tiny",
    "gaussianfusion-tiny",
)


def loaded_by(program):
    """Packages that a fresh interpreter has loaded after a program."""
    asking = (
        "\nimport json, sys\nprint(json.dumps(sorted({name.split('.')[0] for name in sys.modules})), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program + asking], capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr.splitlines()[-1]))


def test_importing_the_core_loads_nothing_that_takes_time():
    assert not loaded_by("import fusionocc_core; fusionocc_core.DEFAULT_PRESET") & (HEAVY | ROS | {"rich", "yaml"})


@pytest.mark.parametrize("arguments", [["--help"], ["predict", "--help"], ["view", "--help"]])
def test_help_loads_no_network_and_no_numbers(arguments):
    program = (
        f"import sys\nsys.argv = ['fusionocc', *{arguments}]\nfrom fusionocc_core import cli\n"
        "try:\n    cli.main()\nexcept SystemExit as end:\n    assert end.code == 0"
    )
    assert not loaded_by(program) & (HEAVY | ROS)


def test_everything_public_is_imported_in_well_under_a_second_beside_torch():
    """CPU time; 0.4 s measured. Optional packages are loaded where they are used."""
    program = (
        "import time, torch\nbegan = time.process_time()\nimport fusionocc_core\n"
        "for name in fusionocc_core.__all__:\n    getattr(fusionocc_core, name)\n"
        "print(time.process_time() - began)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.5
    assert not loaded_by(program) & ({"timm", "torchvision", "nuscenes", "scipy", "pandas", "ray"} | ROS)


@pytest.mark.parametrize("name", SMALL)
def test_what_is_loaded_equals_what_was_saved_in_weights_and_buffers(name, tmp_path):
    torch.manual_seed(5)
    model = make_network(preset_config(name))
    save_model(model, tmp_path / "weights.safetensors")
    loaded = load_model(tmp_path / "weights.safetensors")
    for kind in ("named_parameters", "named_buffers"):  # buffers that are not saved are among them
        ours, theirs = dict(getattr(loaded, kind)()), dict(getattr(model, kind)())
        assert ours.keys() == theirs.keys()
        for key, tensor in theirs.items():
            assert torch.equal(ours[key], tensor), key
            assert (ours[key].requires_grad, ours[key].stride()) == (tensor.requires_grad, tensor.stride()), key


def test_loading_draws_no_random_numbers():
    before = torch.random.get_rng_state()
    load_model()
    assert torch.equal(torch.random.get_rng_state(), before)
    make_network(preset_config("flashfusion-mini"))
    assert not torch.equal(torch.random.get_rng_state(), before)


def test_only_first_values_of_parameters_are_left_out():
    with without_fresh_weights():
        parameter = torch.nn.Parameter(torch.full((3,), 2.0))
        assert torch.nn.init.uniform_(parameter) is parameter
        assert torch.nn.init.trunc_normal_(tensor=parameter, std=0.1) is parameter
        torch.nn.init.zeros_(parameter)
        assert not wants_fresh_weights()
        assert parameter.requires_grad_(False) is parameter
        assert not parameter.requires_grad
        buffer = torch.arange(3.0).mul_(2).fill_(7.0)
    assert wants_fresh_weights()
    assert parameter.tolist() == [2.0] * 3
    assert buffer.tolist() == [7.0] * 3
    assert issubclass(type(load_model()), OccupancyNetwork)
