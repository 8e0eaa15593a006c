"""Counts the multiply-adds of presets and notes them for `fusionocc presets`: ``python benchmarks/macs.py [NAME ...]``.

One frame goes through the network, as it would on a vehicle (noise; six cameras, a sweep of 32 beams and what the
preset wants of earlier ones), under torch.utils.flop_counter, which counts what convolutions and matrix products do:
two operations a multiply-add. What only looks up, compares or adds (pooling of the view transform, sampling, rasters)
is not counted. The numbers go to fusionocc_core/models/multiplications.py; networks that are not named keep theirs.

The count of a network with sparse convolutions or Gaussians depends on the frame.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from flashfusion import make_frame
from torch.utils.flop_counter import FlopCounterMode

from fusionocc_core.data.pipeline import prepare
from fusionocc_core.models.multiplications import GIGA_MACS
from fusionocc_core.presets import list_presets, make_network, preset_config

TARGET = Path(__file__).resolve().parents[1] / "fusionocc_core" / "models" / "multiplications.py"
HEAD = '''"""Multiply-adds of the presets for one frame, in thousands of millions. Written by benchmarks/macs.py."""

GIGA_MACS: dict[str, float] = {
'''


def count(name: str) -> float:
    """Thousands of millions of multiply-adds of a preset for one frame."""
    model = make_network(preset_config(name)).eval().requires_grad_(False)
    inputs = model.config.inputs
    batch = prepare(make_frame(min(6, inputs.num_cameras), 1 + inputs.lidar_history), inputs, model.config.grid)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(batch)
    return counter.get_total_flops() / 2e9


def write(counted: dict[str, float]) -> None:
    """The table, in the order of the presets."""
    known = GIGA_MACS | counted
    rows = [f'    "{name}": {known[name]:.2f},\n' for name in list_presets() if name in known]
    TARGET.write_text(HEAD + "".join(rows) + "}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="presets (default: those that are not counted yet)")
    counted: dict[str, float] = {}
    for name in parser.parse_args().names or [name for name in list_presets() if name not in GIGA_MACS]:
        torch.manual_seed(0)
        counted[name] = count(name)
        sys.stdout.write(f"{name}: {counted[name]:.2f} G\n")
        sys.stdout.flush()
        write(counted)


if __name__ == "__main__":
    main()
