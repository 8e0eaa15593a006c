"""Sun, sky and air of a scene."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from fusionocc_core.simulation.textures import fractal

SKY_SIZE = (256, 1024)
"""Rows (horizon to zenith) and columns (all around) of the sky's picture."""


@dataclass(frozen=True, kw_only=True)
class Weather:
    """Light is linear; 1.0 is a white surface in full daylight."""

    name: str
    sun: tuple[float, float, float]
    """Unit vector towards it."""
    sun_color: tuple[float, float, float]
    ambient_up: tuple[float, float, float]
    """Light on surfaces that face the sky."""
    ambient_down: tuple[float, float, float]
    """Light from below."""
    fog: float
    """Extinction, 1/m."""
    fog_color: tuple[float, float, float]
    night: float
    """0 by day to 1 when lamps and windows shine."""
    exposure: float
    sky: NDArray[np.float32]
    """SKY_SIZE + (3,) linear light."""


KINDS = ("clear", "cloudy", "overcast", "fog", "dusk")
TURNS = ("clear", "cloudy", "clear", "overcast", "dusk", "clear", "fog")
"""What consecutive scenes have, in an order of the data set's own."""


def draw_weather(rng: np.random.Generator, name: str) -> Weather:
    """One of KINDS, with a sun, a haze and a sky of its own."""
    azimuth = rng.uniform(-np.pi, np.pi)
    elevation = np.deg2rad(rng.uniform(4, 10) if name == "dusk" else rng.uniform(22, 68))
    sun = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    strength = {"clear": 1.0, "cloudy": 0.75, "overcast": 0.10, "fog": 0.05, "dusk": 0.16}[name]
    warm = np.array([1.0, 0.93, 0.82]) if name != "dusk" else np.array([1.0, 0.55, 0.3])
    up = {
        "clear": (0.34, 0.40, 0.50),
        "cloudy": (0.40, 0.44, 0.50),
        "overcast": (0.62, 0.65, 0.70),
        "fog": (0.62, 0.64, 0.66),
        "dusk": (0.13, 0.15, 0.22),
    }[name]
    fog = {"clear": 0.0012, "cloudy": 0.002, "overcast": 0.004, "fog": rng.uniform(0.014, 0.03), "dusk": 0.003}[name]
    fog_color = {
        "clear": (0.66, 0.74, 0.84),
        "cloudy": (0.7, 0.74, 0.8),
        "overcast": (0.68, 0.7, 0.73),
        "fog": (0.66, 0.67, 0.68),
        "dusk": (0.24, 0.2, 0.24),
    }[name]
    up_color = np.array(up) * rng.uniform(0.85, 1.15)
    return Weather(
        name=name,
        sun=(float(sun[0]), float(sun[1]), float(sun[2])),
        sun_color=_triple(1.75 * strength * warm * rng.uniform(0.85, 1.1)),
        ambient_up=_triple(up_color),
        ambient_down=_triple(up_color * (0.42, 0.38, 0.33)),
        fog=float(fog),
        fog_color=fog_color,
        night=1.0 if name == "dusk" else (0.25 if name == "fog" else 0.0),
        exposure=float(rng.uniform(0.9, 1.15) * (1.9 if name == "dusk" else 1.0)),
        sky=_sky(rng, name, sun, np.array(fog_color)),
    )


def _triple(values: NDArray[np.floating]) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])


def _sky(
    rng: np.random.Generator, name: str, sun: NDArray[np.floating], horizon: NDArray[np.floating]
) -> NDArray[np.float32]:
    """Zenith to horizon, the sun's halo and clouds."""
    rows, columns = SKY_SIZE
    elevation = (np.arange(rows) + 0.5) / rows * np.pi / 2
    azimuth = (np.arange(columns) + 0.5) / columns * 2 * np.pi - np.pi
    zenith = {
        "clear": np.array([0.16, 0.32, 0.62]),
        "cloudy": np.array([0.24, 0.38, 0.6]),
        "overcast": np.array([0.62, 0.65, 0.7]),
        "fog": np.array([0.7, 0.71, 0.72]),
        "dusk": np.array([0.05, 0.07, 0.16]),
    }[name]
    rise = (np.sin(elevation) ** 0.55)[:, None, None]
    sky = horizon * 1.12 * (1 - rise) + zenith * rise
    direction = np.stack(
        [
            np.outer(np.cos(elevation), np.cos(azimuth)),
            np.outer(np.cos(elevation), np.sin(azimuth)),
            np.outer(np.sin(elevation), np.ones(columns)),
        ],
        axis=-1,
    )
    towards = np.clip(direction @ sun, 0, 1)[..., None]
    glow = np.array([1.0, 0.5, 0.2]) * 0.5 if name == "dusk" else np.array([1.0, 0.95, 0.85]) * 0.35
    if name in ("clear", "cloudy", "dusk"):
        sky = sky + glow * (towards**6 + 1.5 * towards**60)
        amount = {"clear": -0.9, "cloudy": 0.15, "dusk": -0.2}[name] + rng.uniform(-0.3, 0.3)
        noise = fractal(rng, columns, 4, 512, 0.62)
        height = 1.0 / np.maximum(np.sin(elevation), 0.08)  # clouds lie in a layer: seen from the side they are flat
        row = np.clip((height * 60).astype(int), 0, columns - 1)
        cover = np.clip((noise[row] + amount) * 1.1, 0, 1)[..., None]
        cover *= np.clip(np.sin(elevation) * 6, 0, 1)[:, None, None]
        lit = np.array([0.4, 0.3, 0.3]) if name == "dusk" else np.array([1.0, 1.0, 1.0])
        sky = sky * (1 - 0.85 * cover) + 0.85 * cover * lit * (0.95 - 0.25 * cover)
    else:
        sky = sky * (1 + 0.05 * fractal(rng, columns, 2, 16)[:rows, :, None])
    return np.asarray(cv2.GaussianBlur(np.ascontiguousarray(sky, np.float32), (0, 0), 1.0), np.float32)
