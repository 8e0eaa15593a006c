"""A scene ready to be recorded: its street, its rig, and what several keyframes share."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.simulation import masks, truth
from fusionocc_core.simulation.config import SceneSpec, SimulationConfig, scene_clock
from fusionocc_core.simulation.randomness import rng_for, token_for
from fusionocc_core.simulation.rigs import Rig
from fusionocc_core.simulation.street import Street, build_street

MARGIN = 120.0
"""From the drive to the map's edge, metres."""
NEIGHBOURS = 8
"""Keyframes before and after whose beams count for mask_lidar: about four seconds each way."""
US = 1e-6


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A scene that is ready to be recorded."""

    config: SimulationConfig
    scene: SceneSpec
    rig: Rig
    street: Street

    @cached_property
    def samples(self) -> truth.SurfaceSamples:
        """Surface samples, made at first use."""
        return truth.sample_street(self.street, self.rng("samples"))

    @cached_property
    def street2global(self) -> NDArray[np.float64]:
        """A shift that makes all map coordinates positive."""
        path = self.street.drive.line.point(np.arange(0.0, self.street.plan.travelled + 1.0, 1.0))
        out = np.eye(4)
        out[:2, 3] = MARGIN - np.floor(path.min(axis=0))
        return out

    @cached_property
    def _probes(self) -> OrderedDict[int, masks.Probe]:
        return OrderedDict()

    def rng(self, *keys: object) -> np.random.Generator:
        """Random numbers of this scene for a purpose."""
        return rng_for(self.config.seed, self.scene.split, self.scene.index, *keys)

    def seconds(self, stamp_us: int) -> float:
        """Time since the scene's start."""
        return (stamp_us - self.scene.start_us) * US

    def probe(self, keyframe: int) -> masks.Probe:
        """What a keyframe's dense beams hit; the last few are kept."""
        if keyframe not in self._probes:
            t = self.seconds(scene_clock(self.config, self.scene)[keyframe].lidar_us)
            lidar2street = self.street.drive.poses(t)[0] @ self.rig.lidar.lidar2ego
            self._probes[keyframe] = masks.probe(self.street.snapshot(t), self.rig.lidar, lidar2street)
            while len(self._probes) > 2 * NEIGHBOURS + 2:
                self._probes.popitem(last=False)
        self._probes.move_to_end(keyframe)
        return self._probes[keyframe]

    def token(self, kind: str, *index: object) -> str:
        """A token of this scene."""
        return token_for(self.config.seed, kind, self.scene.name, *index)


@lru_cache(maxsize=1)
def stage_scene(config: SimulationConfig, scene: SceneSpec) -> Stage:
    """Build a scene; the last one is kept."""
    rig = config.load_rig()
    street = build_street(
        seed=config.seed,
        split=scene.split,
        index=scene.index,
        left_hand=rig.left_hand_traffic,
        duration=config.duration,
    )
    return Stage(config=config, scene=scene, rig=rig, street=street)


def file_name(stage: Stage, folder: str, channel: str, stamp_us: int, suffix: str) -> str:
    """Path below the root, as nuScenes names files."""
    log = log_name(stage.config, stage.scene)
    return f"{folder}/{channel}/{log}__{channel}__{stamp_us}{suffix}"


def log_name(config: SimulationConfig, scene: SceneSpec) -> str:
    """The log file that a scene would have come from."""
    return f"sim-{config.seed}-{scene.name}"
