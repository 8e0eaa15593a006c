"""What to simulate, and the clock and names that follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fusionocc_core.simulation.corruptions import Corruption
from fusionocc_core.simulation.randomness import rng_for
from fusionocc_core.simulation.rigs import Rig, load_rig

EPOCH_US = 1_700_000_000_000_000
"""Stamp of the first scene's start, microseconds."""
SCENE_GAP_US = 1_000_000_000
VERSION = "v1.0-sim"
SWEEP_US = 50_000
CAMERA_JITTER_S = 0.00075


@dataclass(frozen=True, kw_only=True)
class SimulationConfig:
    """A data set. The same values give the same bytes, whatever the number of workers."""

    scenes: int = 10
    """In all; see ``val_scenes``."""
    keyframes: int = 40
    """A scene; two a second."""
    seed: int = 0
    rig: str = "nuscenes-singapore"
    """A built-in rig or a rig file (.yaml)."""
    image_size: tuple[int, int] | None = None
    """(H, W) of all cameras; None: the rig's own, 900 x 1600 for the built-in ones."""
    val_scenes: int | None = None
    """How many of the scenes are for validation; None: a fifth, and at least one where there are two scenes."""
    sweeps: bool = False
    """Also the LiDAR sweeps between keyframes (20 Hz)."""
    test_truth: bool = False
    """Also dense depth, category and instance pictures, which no real data set has, for tests."""
    ground_quirk: bool = False
    """Occ3D labels with the road at the lowest level, as the one genuine label at hand has it."""
    official_names: bool = False
    """Scene names of nuScenes' official splits, so that tools with fixed splits find them."""
    corruptions: tuple[str, ...] = ()
    """NAME:SEVERITY entries that spoil what is written (see corruptions.CORRUPTIONS)."""
    jpeg_quality: int = 90

    def __post_init__(self) -> None:
        """Refuse what cannot be simulated."""
        if self.scenes < 1:
            raise ValueError(f"scenes={self.scenes}: at least one scene is needed")
        if self.keyframes < 1:
            raise ValueError(f"keyframes={self.keyframes}: at least one keyframe a scene is needed")
        if self.keyframes > 100:
            raise ValueError(
                f"keyframes={self.keyframes}: at most 100 a scene (50 s of driving); make more scenes instead"
            )
        if self.val_scenes is not None and not 0 <= self.val_scenes <= self.scenes:
            raise ValueError(f"val_scenes={self.val_scenes}: expected 0 to scenes={self.scenes}")
        if self.image_size is not None and not all(16 <= edge <= 4096 for edge in self.image_size):
            raise ValueError(f"image_size={self.image_size}: expected (height, width) of 16 to 4096 pixels each")
        for text in self.corruptions:
            Corruption.parse(text)
        if not 10 <= self.jpeg_quality <= 100:
            raise ValueError(f"jpeg_quality={self.jpeg_quality}: expected 10 to 100")

    @property
    def num_val(self) -> int:
        """How many scenes are for validation."""
        if self.val_scenes is not None:
            return self.val_scenes
        return max(1, round(self.scenes / 5)) if self.scenes > 1 else 0

    @property
    def duration(self) -> float:
        """Of a scene's drive, with a margin, seconds."""
        return 0.5 * self.keyframes + 1.0

    def load_rig(self) -> Rig:
        """The rig at the chosen picture size."""
        return load_rig(self.rig).resized(self.image_size)


@dataclass(frozen=True, kw_only=True)
class SceneSpec:
    """One scene of a data set."""

    number: int
    """0, 1 ... over the whole data set."""
    split: str
    """"train" or "val"."""
    index: int
    """Within its split; with seed and split it decides everything that is drawn."""
    name: str
    version: str
    """Folder of the tables."""

    @property
    def start_us(self) -> int:
        """Stamp of t = 0."""
        return EPOCH_US + ((500 if self.split == "val" else 0) + self.index) * SCENE_GAP_US


def list_scenes(config: SimulationConfig) -> list[SceneSpec]:
    """All scenes, training first. Names and contents do not depend on how many scenes there are."""
    counts = (("train", config.scenes - config.num_val), ("val", config.num_val))
    names = {"train": [f"scene-{9001 + k}" for k in range(499)], "val": [f"scene-{9501 + k}" for k in range(499)]}
    version = VERSION
    if config.official_names:
        version, names = _official(counts[0][1], counts[1][1])
    scenes: list[SceneSpec] = []
    for split, count in counts:
        if count > len(names[split]):
            raise ValueError(f"scenes={config.scenes}: at most {len(names[split])} {split} scenes have a name")
        for index in range(count):
            scenes.append(
                SceneSpec(number=len(scenes), split=split, index=index, name=names[split][index], version=version)
            )
    return scenes


def _official(train: int, val: int) -> tuple[str, dict[str, list[str]]]:
    """The smallest official version whose splits have enough scenes, and their names."""
    try:
        from nuscenes.utils import splits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "official scene names come from nuscenes-devkit: pip install nuscenes-devkit==1.2.0"
        ) from error
    if train <= len(splits.mini_train) and val <= len(splits.mini_val):
        return "v1.0-mini", {"train": list(splits.mini_train), "val": list(splits.mini_val)}
    return "v1.0-trainval", {"train": list(splits.train), "val": list(splits.val)}


@dataclass(frozen=True, kw_only=True)
class KeyframeClock:
    """Stamps of one keyframe, microseconds."""

    lidar_us: int
    cameras_us: tuple[int, ...]
    """In the rig's order."""
    sweeps_us: tuple[int, ...]
    """LiDAR sweeps after the keyframe before and before this one."""


@lru_cache(maxsize=8)
def scene_clock(config: SimulationConfig, scene: SceneSpec) -> tuple[KeyframeClock, ...]:
    """When the sensors fires: sweeps of 50 ms, keyframes 8 to 12 sweeps apart, cameras as the beam passes."""
    rng = rng_for(config.seed, scene.split, scene.index, "clock")
    rig = config.load_rig()
    leads = [rig.camera_lead_s(camera) for camera in rig.cameras]
    clocks = []
    at = scene.start_us + 200_000
    for k in range(config.keyframes):
        gap = int(rng.choice([8, 9, 10, 11, 12], p=[0.01, 0.18, 0.66, 0.14, 0.01]))
        jitter = rng.normal(0, 180, 12)
        sweeps = []
        if k:
            for j in range(1, gap):
                sweeps.append(at + j * SWEEP_US + round(float(jitter[j - 1])))
            at += gap * SWEEP_US + round(float(jitter[-1]))
        delay = np.clip(rng.normal(0, CAMERA_JITTER_S, len(leads)), -0.0025, 0.0025)
        cameras = tuple(at + round((lead + float(late)) * 1e6) for lead, late in zip(leads, delay, strict=True))
        clocks.append(KeyframeClock(lidar_us=at, cameras_us=cameras, sweeps_us=tuple(sweeps)))
    return tuple(clocks)
