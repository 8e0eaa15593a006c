"""From the sensors' messages to the answer, over DDS, beside the same network on frames that are ready in memory.

python benchmarks/node.py --data data/sim [--scene NAME] [--keyframes 20] [--model flashfusion-mini] [--json FILE]

Node and player are processes of their own, as in `fusionocc demo`; the player shares the cores. The bare network is
asked for its confidence as well, before and after the others, by turns with nothing. Latency is the node's own: from
the arrival of a sweep to the publishing of its answer, JPEGs included. Wants an idle machine.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from machine import in_words, machine, wide_console, write_report
from rich.table import Table

from fusionocc_core import DEFAULT_PRESET, Predictor, load_model
from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_core.process import arrange_process

PARTS = ("synchronization_time", "queue_time", "preparation_time", "network_time", "decoding_time", "total_time")
WARM = 2
"""Answers of each way that are not counted."""


def bare(frames: NuScenesFrames, indices: list[int], model: str) -> list[float]:
    """Seconds of each frame, in this process, its files read before."""
    predictor = Predictor(load_model(model), confidence=True)
    seconds = []
    for index in indices:
        frame = frames[index]
        began = time.perf_counter()
        predictor(frame)
        seconds.append(time.perf_counter() - began)
    return seconds[WARM:]


def through_the_node(
    arguments: argparse.Namespace, frames: NuScenesFrames, scene: str, folder: Path
) -> tuple[dict[str, list[float]], float]:
    """Seconds of each part for each answer, and answers a second."""
    from fusionocc_ros.demo import DemoPlan, play_scene
    from fusionocc_ros.demo_network import TORCH

    plan = DemoPlan(
        data=arguments.data,
        scene=scene,
        out=folder,
        model=arguments.model,
        runtime=TORCH,  # as the bare network
        most_keyframes=arguments.keyframes,
    )
    _, answers = play_scene(plan, frames, scene, wide_console())
    messages = [answers.messages[stamp] for stamp in sorted(answers.messages)][WARM:]
    parts = {part: [float(getattr(message, part)) for message in messages] for part in PARTS}
    return parts, answers.a_second or float("nan")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--scene")
    parser.add_argument("--keyframes", type=int, default=20)
    parser.add_argument("--model", default=DEFAULT_PRESET)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    arrange_process()
    history = load_model(arguments.model).config.inputs.lidar_history
    frames = NuScenesFrames(arguments.data, lidar_history=history)
    scene = arguments.scene or frames.scenes[0]
    indices = list(frames.scene_indices(scene))[: arguments.keyframes]
    alone = bare(frames, indices, arguments.model)
    with tempfile.TemporaryDirectory() as folder:
        parts, a_second = through_the_node(arguments, frames, scene, Path(folder))
    alone += bare(frames, indices, arguments.model)
    table = Table("", "p50 ms", "p95 ms", title=f"{arguments.model}, {len(parts['total_time'])} keyframes of {scene}")
    rows = {"network alone, frames ready": alone}
    rows |= {part.removesuffix("_time"): seconds for part, seconds in parts.items()}
    for name, seconds in rows.items():
        table.add_row(name, *(f"{1e3 * np.percentile(seconds, share):.0f}" for share in (50, 95)))
    console = wide_console()
    console.print(table)
    ratio = median(parts["total_time"]) / median(alone)
    console.print(f"{a_second:.1f} answers a second; {ratio:.2f} times the network alone (medians)")
    about = machine()
    console.print(in_words(about))
    if arguments.json:
        write_report(arguments.json, about, {"seconds": rows, "answers a second": a_second, "ratio": ratio})
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(main())
