"""fusionocc-base on a CPU, side by side: ``python benchmarks/base_cpu.py [--cameras 1] [--memory]``.

Three ways of answering the same keyframe of noise: the plain network in float32 as load_model gives it, what Predictor
runs (folded norms, Swin blocks for inference, bfloat16 where the CPU has it), and that with the features kept that the
keyframe before left. All in one process, one after the other, round by round; processor time, the median of the rounds.
A round takes some minutes; ``--cameras 1`` looks at one camera, ``--rounds 1 --threads 1`` is what docs/fusionocc.md
quotes. ``--memory`` starts each way in a process of its own and prints the memory that it needed at most.

The weights are fresh, so that the best two classes of a voxel are hardly apart: labels that differ say how thin the
margins are. With ``--lively`` every weight is drawn so that signals stay strong down to the classes.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from fusionocc import noise
from machine import in_words, machine, write_report
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from fusionocc_core.models.fusionocc import FusionOcc
from fusionocc_core.predictor import PRECISIONS, network_for_inference
from fusionocc_core.presets import load_model
from fusionocc_core.structures import Batch

WAYS = ("plain float32", "fast", "fast, pictures kept")
PARTS = {
    "img_backbone": "image backbone",
    "img_neck": "image neck",
    "img_view_transformer": "fusion in the picture",
    "lift": "lift",
    "pre_process_net": "lifted volumes",
    "lidar_encoder": "LiDAR",
    "img_bev_encoder_backbone": "3D encoder",
    "img_bev_encoder_neck": "3D neck",
    "final_conv": "last 3D convolution",
    "predicter": "classes",
}


@dataclass
class Measured:
    """What one way took, round by round, and what it answered."""

    seconds: list[float]
    parts: list[dict[str, float]]
    logits_BKXYZ: Tensor


class PartTimes:
    """Processor seconds in the parts of a network."""

    def __init__(self, network: nn.Module) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        for name, part in network.named_children():
            part.register_forward_pre_hook(lambda part, inputs, name=name: self._add(name, -time.process_time()))
            part.register_forward_hook(lambda part, inputs, outputs, name=name: self._add(name, time.process_time()))

    def _add(self, name: str, seconds: float) -> None:
        self.seconds[name] += seconds


def make_network(preset: str, *, lively: bool) -> FusionOcc:
    """Fresh weights; lively ones give every norm and every layer a part in the answer."""
    torch.manual_seed(0)
    network = load_model(preset)
    assert isinstance(network, FusionOcc), f"--preset {preset} is no FusionOcc"
    for name, parameter in network.named_parameters() if lively else ():
        if name.endswith("relative_position_bias_table"):
            nn.init.normal_(parameter, std=0.5)
        elif parameter.dim() == 1:
            nn.init.uniform_(parameter, 0.5, 1.5) if name.endswith("weight") else nn.init.normal_(parameter, std=0.1)
        else:
            nn.init.normal_(parameter, std=(1.6 / (parameter.numel() / parameter.shape[0])) ** 0.5)
    return network.eval()


def two_keyframes(network: FusionOcc, cameras: int) -> tuple[Batch, Batch]:
    """A keyframe, and the next one, 4 m further on: its earlier pictures are the current ones of the first."""
    first = noise(network.config, cameras)
    images_BTNCHW = torch.randn(first.images_BTNCHW.shape, generator=torch.Generator().manual_seed(1))
    images_BTNCHW[:, 1:] = first.images_BTNCHW[:, :-1]
    poses_BTN44 = first.cam2keyego_BTN44.clone()
    poses_BTN44[:, 1:, :, 0, 3] -= 4.0
    return first, replace(first, images_BTNCHW=images_BTNCHW, cam2keyego_BTN44=poses_BTN44)


@torch.inference_mode()
def side_by_side(args: argparse.Namespace, console: Console) -> dict[str, Measured]:
    """All ways on the same keyframe, in turns."""
    plain = make_network(args.preset, lively=args.lively)
    fast = network_for_inference(plain, torch.device("cpu"), args.precision)
    assert isinstance(fast, FusionOcc)
    first, second = two_keyframes(plain, args.cameras)
    times = {"plain": PartTimes(plain), "fast": PartTimes(fast)}
    _, kept = fast.next_keyframe(first, None)  # also warms up; the plans of the lift are made here
    ways: dict[str, tuple[str, Callable[[], Tensor]]] = {
        WAYS[0]: ("plain", lambda: plain(second).logits_BKXYZ),
        WAYS[1]: ("fast", lambda: fast.next_keyframe(second, None)[0].logits_BKXYZ),
        WAYS[2]: ("fast", lambda: fast.next_keyframe(second, kept)[0].logits_BKXYZ),
    }
    found: dict[str, Measured] = {}
    for round_number in range(args.rounds):
        for way, (network, answer) in ways.items():
            times[network].seconds.clear()
            began = time.process_time()
            logits_BKXYZ = answer()
            seconds = time.process_time() - began
            console.print(f"round {round_number + 1}: {way}: {seconds:.1f} s")
            one = found.setdefault(way, Measured(seconds=[], parts=[], logits_BKXYZ=logits_BKXYZ))
            one.seconds.append(seconds)
            one.parts.append(dict(times[network].seconds))
    return found


def tables(found: dict[str, Measured]) -> list[Table]:
    """Processor seconds by part, and how the answers agree."""
    plain, fast, kept = (found[way] for way in WAYS)
    seconds = Table("processor seconds", *WAYS)
    for name, words in PARTS.items():
        seconds.add_row(words, *(f"{median(p.get(name, 0.0) for p in one.parts):.2f}" for one in (plain, fast, kept)))
    sums = [median(one.seconds) for one in (plain, fast, kept)]
    seconds.add_section()
    seconds.add_row("all", *(f"{s:.1f}" for s in sums))
    seconds.add_row("of the plain network's", "", *(f"{s / sums[0]:.2f}" for s in sums[1:]))
    seconds.add_row("of the way before", "", *(f"{b / a:.2f}" for a, b in pairwise(sums)))
    same = Table("compared with", "same labels", "largest difference of scores", "median margin of the best class")
    for words, one, other in (("plain float32: fast", plain, fast), ("fast: pictures kept", fast, kept)):
        same.add_row(words, *agreement(one.logits_BKXYZ, other.logits_BKXYZ))
    return [seconds, same]


def agreement(one_BKXYZ: Tensor, other_BKXYZ: Tensor) -> tuple[str, str, str]:
    """Share of equal labels, the largest difference of a score, and how far the best class leads."""
    equal = (one_BKXYZ.argmax(dim=1) == other_BKXYZ.argmax(dim=1)).double().mean()
    best_BXYZ2 = one_BKXYZ.movedim(1, -1).topk(2).values
    margin = (best_BXYZ2[..., 0] - best_BXYZ2[..., 1]).median()
    return f"{100 * equal:.3f} %", f"{(one_BKXYZ - other_BKXYZ).abs().max():.4f}", f"{margin:.4f}"


@torch.inference_mode()
def memory_of(way: str, args: argparse.Namespace) -> dict[str, float]:
    """MiB of this process: before the first keyframe, and at most. Two keyframes for the way that keeps pictures."""
    plain = make_network(args.preset, lively=args.lively)
    first, second = two_keyframes(plain, args.cameras)
    network = plain if way == WAYS[0] else network_for_inference(plain, torch.device("cpu"), args.precision)
    assert isinstance(network, FusionOcc)
    before = resident()
    if way == WAYS[0]:
        network(second)
    else:
        kept = None if way == WAYS[1] else network.next_keyframe(first, None)[1]
        network.next_keyframe(second, kept)
    return {"before": before, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10}


def resident() -> float:
    """MiB that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def memory_table(console: Console) -> tuple[Table, dict[str, dict[str, float]]]:
    """Each way in a process of its own, started with the same arguments."""
    table, found = Table("MiB of a process of its own", "before the keyframe", "at most", "more"), {}
    for way in WAYS:
        done = subprocess.run(
            [sys.executable, *sys.argv, "--alone", way], stdout=subprocess.PIPE, text=True, check=True
        )
        found[way] = one = json.loads(done.stdout.splitlines()[-1])
        console.print(f"{way}: {one['peak']:.0f} MiB")
        table.add_row(way, *(f"{value:.0f}" for value in (one["before"], one["peak"], one["peak"] - one["before"])))
    return table, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="fusionocc-base")
    parser.add_argument("--cameras", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="of the fast ways")
    parser.add_argument("--lively", action="store_true", help="weights that give strong signals")
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time")
    parser.add_argument("--json", type=Path, help="write the numbers to this file, too")
    parser.add_argument("--alone", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.alone:
        print(json.dumps(memory_of(args.alone, args)))
        return
    console, progress, about = Console(), Console(stderr=True), machine()
    if args.memory:
        table, numbers = memory_table(progress)
        console.print(table)
        report: dict[str, object] = {"MiB": numbers}
    else:
        found = side_by_side(args, progress)
        for table in tables(found):
            console.print(table)
        report = {"seconds": {way: {"all": one.seconds, "parts": one.parts} for way, one in found.items()}}
    console.print(in_words(about), highlight=False, soft_wrap=True)
    if args.json is not None:
        write_report(args.json, about, report)


if __name__ == "__main__":
    main()
