"""Procedural textures: one picture a material, different in every scene, with its mip levels in one flat array.

Colours are stored with gamma 2 (albedo = (value / 255)**2). The fourth channel says how much the texel mirrors the sky;
above LIT it is a window that shines in the dark.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from fusionocc_core.simulation.materials import FACADES, MATERIALS, Material, column

LIT = 220
"""Values of the fourth channel from here on mark windows that are lit at night."""
Picture = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class TextureSet:
    """All textures of a scene."""

    texels: NDArray[np.uint32]
    """(N,) RGBA packed; all mip levels of all materials."""
    offset: NDArray[np.int32]
    """(M, LEVELS) where a level begins."""
    log2_size: NDArray[np.int32]
    """(M,) of the finest level."""
    per_meter: NDArray[np.float32]
    """(M,) texture tiles a metre."""


def make_textures(rng: np.random.Generator) -> TextureSet:
    """A new set; no two sets share a texture."""
    chunks: list[NDArray[np.uint32]] = []
    levels = 10
    offset = np.zeros((len(Material), levels), np.int32)
    log2_size = np.zeros(len(Material), np.int32)
    position = 0
    for material in Material:
        picture = _paint(material, rng)
        log2_size[material] = int(np.log2(picture.shape[0]))
        for level in range(levels):
            offset[material, level] = position
            if level <= log2_size[material]:
                if level:
                    half = cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
                    picture = np.asarray(half, np.float32)
                bytes_ = np.ascontiguousarray(np.clip(picture + 0.5, 0, 255).astype(np.uint8))
                chunks.append(bytes_.reshape(-1).view(np.uint32))
                last, position = position, position + len(chunks[-1])
            else:
                offset[material, level] = last
    return TextureSet(
        texels=np.concatenate(chunks), offset=offset, log2_size=log2_size, per_meter=1.0 / column("repeat")
    )


def fractal(rng: np.random.Generator, size: int, coarsest: int, finest: int, fall: float = 0.6) -> Picture:
    """Tileable noise (size, size), mean 0, deviation 1; octaves from ``coarsest`` to ``finest`` cells (powers of 2)."""
    total = np.zeros((size, size), np.float32)
    weight, cells = 1.0, coarsest
    while cells <= min(finest, size):
        grid = np.pad(rng.standard_normal((cells, cells)).astype(np.float32), 2, mode="wrap")
        factor = size // cells
        fine = cv2.resize(grid, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
        total += weight * fine[2 * factor : 2 * factor + size, 2 * factor : 2 * factor + size]
        weight, cells = weight * fall, cells * 2
    return (total - total.mean()) / max(float(total.std()), 1e-6)


def _plain(size: int, color: tuple[float, float, float], gloss: float = 0.0) -> Picture:
    picture = np.empty((size, size, 4), np.float32)
    picture[...] = (*(255 * c for c in color), 255 * gloss)
    return picture


def _shade(picture: Picture, noise: Picture, amount: float) -> Picture:
    """Multiply the colours by 1 + amount * noise."""
    picture[..., :3] *= np.clip(1 + amount * noise, 0.2, 1.8)[..., None]
    return picture


def _noisy(color: tuple[float, float, float], amount: float, coarsest: int = 4) -> Callable[..., Picture]:
    def paint(rng: np.random.Generator, size: int) -> Picture:
        return _shade(_plain(size, color), fractal(rng, size, min(coarsest, size), size, 0.75), amount)

    return paint


def _asphalt(rng: np.random.Generator, size: int) -> Picture:
    level = rng.uniform(0.40, 0.56)
    picture = _plain(size, (level, level * rng.uniform(0.97, 1.0), level * rng.uniform(0.92, 1.0)))
    _shade(picture, fractal(rng, size, 2, 8), 0.025)
    _shade(picture, fractal(rng, size, 128, size, 1.0), 0.11)
    for _ in range(int(rng.integers(1, 4))):  # cracks: a random walk across the tile
        walk = np.cumsum(rng.normal(0, 1.2, size)).astype(int) + int(rng.integers(size))
        picture[np.arange(size), walk % size, :3] *= 0.6
    return picture


def _paver(rng: np.random.Generator, size: int) -> Picture:
    base = np.array([rng.uniform(0.5, 0.68), rng.uniform(0.48, 0.62), rng.uniform(0.42, 0.6)])
    rows = int(rng.choice([5, 6, 10]))
    columns_ = int(rng.choice([5, 6, 10]))
    tone = 1 + 0.07 * rng.standard_normal((rows, columns_))
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    shift = 0.5 * (np.floor(y * rows) % 2) if rng.random() < 0.5 else 0.0
    i, j = np.floor(y * rows).astype(int), np.floor(x * columns_ + shift).astype(int) % columns_
    picture = _plain(size, tuple(base))
    picture[..., :3] *= tone[i, j][..., None]
    joint = ((y * rows) % 1 < 0.05) | ((x * columns_ + shift) % 1 < 0.05)
    picture[joint, :3] *= 0.72
    return _shade(picture, fractal(rng, size, 8, size, 0.8), 0.07)


def _grass(rng: np.random.Generator, size: int) -> Picture:
    dry = rng.uniform(0, 0.5)
    green = np.array([0.37, 0.43, 0.23])
    straw = np.array([0.56, 0.50, 0.34])
    mix = np.clip(dry + 0.16 * fractal(rng, size, 4, 32), 0, 1)[..., None]
    picture = _plain(size, (1, 1, 1))
    picture[..., :3] = 255 * (green * (1 - mix) + straw * mix)
    return _shade(picture, fractal(rng, size, 32, size, 0.95), 0.18)


def _leaf(rng: np.random.Generator, size: int) -> Picture:
    hue = rng.uniform(0, 1)
    picture = _plain(size, (0.28 + 0.14 * hue, 0.40 + 0.06 * hue, 0.17 + 0.05 * rng.random()))
    _shade(picture, fractal(rng, size, 4, 16), 0.16)
    return _shade(picture, fractal(rng, size, 16, 128, 1.0), 0.34)


def _brick(rng: np.random.Generator, size: int) -> Picture:
    picture = _plain(size, (rng.uniform(0.5, 0.68), rng.uniform(0.32, 0.45), rng.uniform(0.26, 0.38)))
    rows, columns_ = 32, 10
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    i = np.floor(y * rows).astype(int)
    across = x * columns_ + 0.5 * (i % 2)
    picture[..., :3] *= (1 + 0.12 * rng.standard_normal((rows, columns_)))[i, np.floor(across).astype(int) % columns_][
        ..., None
    ]
    mortar = ((y * rows) % 1 < 0.14) | (across % 1 < 0.05)
    picture[mortar, :3] = 255 * 0.62
    return _shade(picture, fractal(rng, size, 2, 32), 0.08)


def _facade(rng: np.random.Generator, size: int) -> Picture:
    """Four bays by four storeys of 3.3 m."""
    style = rng.choice(["punched", "strip", "curtain", "balcony"])
    wall = rng.uniform(0.5, 0.9) * (1 - np.array([0.0, rng.uniform(0, 0.14), rng.uniform(0, 0.25)]))
    picture = _shade(_plain(size, tuple(wall)), fractal(rng, size, 2, size, 0.55), 0.035)
    cell = size // 4
    glass = np.array([rng.uniform(0.16, 0.3), rng.uniform(0.22, 0.34), rng.uniform(0.26, 0.4)])
    low, high = {
        "punched": (rng.uniform(0.22, 0.32), rng.uniform(0.72, 0.88)),
        "strip": (0.3, 0.8),
        "curtain": (0.03, 0.97),
        "balcony": (0.1, 0.85),
    }[str(style)]
    side = {"punched": rng.uniform(0.12, 0.3), "strip": 0.0, "curtain": 0.02, "balcony": 0.12}[str(style)]
    for row in range(4):
        for bay in range(4):
            _window(picture, rng, (row, bay), cell, (low, high), side, glass)
        if style == "balcony":
            bottom = (row + 1) * cell - int(0.04 * cell)
            picture[bottom - int(0.3 * cell) : bottom, :, :3] = 255 * wall * rng.uniform(0.75, 0.9)
            picture[bottom - int(0.3 * cell) : bottom, :, 3] = 0
        picture[(row + 1) * cell - 3 : (row + 1) * cell, :, :3] *= 0.8
    return picture


def _window(
    picture: Picture,
    rng: np.random.Generator,
    place: tuple[int, int],
    cell: int,
    heights: tuple[float, float],
    side: float,
    glass: NDArray[np.floating],
) -> None:
    """Glass with a frame, two panes and perhaps a blind. Picture rows run upwards, as texture coordinate v does."""
    row, bay = place
    y0, y1 = row * cell + int(heights[0] * cell), row * cell + int(heights[1] * cell)
    x0, x1 = bay * cell + int(side * cell), (bay + 1) * cell - int(side * cell)
    picture[y0:y1, x0:x1] = (*(255 * glass * rng.uniform(0.7, 1.25)), 110)
    lit = rng.random() < 0.4
    if rng.random() < 0.35:  # a blind from the top
        drop = int((y1 - y0) * rng.uniform(0.2, 0.9))
        picture[y1 - drop : y1, x0:x1] = (*(255 * rng.uniform(0.45, 0.75) * np.ones(3)), 50)
    if lit:
        picture[y0:y1, x0:x1, 3] = 255
    frame = (*(255 * rng.uniform(0.35, 0.8) * np.ones(3)), 0)
    picture[y0 : y0 + 3, x0:x1] = picture[y1 - 3 : y1, x0:x1] = frame
    for x in np.linspace(x0, x1 - 2, 3).astype(int):
        picture[y0:y1, x : x + 2] = frame


def _shopfront(rng: np.random.Generator, size: int) -> Picture:
    """A ground floor 6.6 m wide and 3.3 m high, repeated: doors, glass and a name board."""
    picture = _plain(size, tuple(rng.uniform(0.45, 0.7) * np.ones(3)))
    cell = size // 4
    for row in range(4):
        for bay in range(4):
            _window(picture, rng, (row, bay), cell, (0.04, 0.72), 0.04, np.array([0.2, 0.22, 0.24]))
            y0, x0 = row * cell + int(0.76 * cell), bay * cell
            color = rng.uniform(0.15, 0.85, 3)
            picture[y0 : (row + 1) * cell, x0 + 4 : x0 + cell - 4] = (*(255 * color), 10)
            for x in range(x0 + 16, x0 + cell - 24, 12):
                if rng.random() < 0.8:
                    picture[y0 + 8 : y0 + 20, x : x + 7, :3] = 255 * (0.95 if color.mean() < 0.5 else 0.1)
    return picture


def _poster(rng: np.random.Generator, size: int) -> Picture:
    picture = _plain(size, tuple(rng.uniform(0.2, 0.9, 3)))
    for _ in range(14):
        x, y = rng.integers(0, size, 2)
        w, h = rng.integers(size // 16, size // 3, 2)
        picture[y : y + h, x : x + w, :3] = 255 * rng.uniform(0.1, 0.95, 3)
    return picture


def _fence(rng: np.random.Generator, size: int) -> Picture:
    picture = _plain(size, tuple(rng.uniform(0.4, 0.75) * np.array([1, rng.uniform(0.9, 1), rng.uniform(0.8, 1)])))
    picture[:, :: size // 8, :3] *= 0.6
    return _shade(picture, fractal(rng, size, 4, size, 0.7), 0.08)


def _concrete(rng: np.random.Generator, size: int) -> Picture:
    level = rng.uniform(0.6, 0.75)
    picture = _plain(size, (level, level * 0.985, level * 0.95))
    picture[:2, :, :3] *= 0.8
    picture[:, :2, :3] *= 0.8
    return _shade(picture, fractal(rng, size, 2, size, 0.7), 0.08)


_PAINTERS: dict[Material, Callable[[np.random.Generator, int], Picture]] = {
    Material.ASPHALT: _asphalt,
    Material.PAINT: _noisy((0.92, 0.92, 0.92), 0.06, 64),
    Material.CONCRETE: _concrete,
    Material.PAVER: _paver,
    Material.GRASS: _grass,
    Material.SOIL: _noisy((0.55, 0.45, 0.34), 0.2),
    **dict.fromkeys(FACADES, _facade),
    Material.SHOPFRONT: _shopfront,
    Material.BRICK: _brick,
    Material.ROOF: _noisy((0.5, 0.48, 0.46), 0.1),
    Material.METAL: _noisy((0.92, 0.92, 0.92), 0.04),
    Material.GLASS: _noisy((0.5, 0.5, 0.5), 0.0),
    Material.CAR_PAINT: _noisy((1.0, 1.0, 1.0), 0.0),
    Material.RUBBER: _noisy((0.2, 0.2, 0.2), 0.1),
    Material.PLASTIC: _noisy((0.95, 0.95, 0.95), 0.05),
    Material.CLOTH: _noisy((0.9, 0.9, 0.9), 0.12, 8),
    Material.SKIN: _noisy((0.72, 0.55, 0.45), 0.03),
    Material.LEAF: _leaf,
    Material.BARK: _noisy((0.42, 0.35, 0.28), 0.25),
    Material.SIGN: _noisy((0.95, 0.95, 0.95), 0.01),
    Material.HEAD_LAMP: _noisy((0.85, 0.87, 0.9), 0.02),
    Material.TAIL_LAMP: _noisy((0.75, 0.1, 0.08), 0.05),
    Material.PLATE: _noisy((0.9, 0.9, 0.85), 0.1),
    Material.POSTER: _poster,
    Material.FENCE: _fence,
}


def _paint(material: Material, rng: np.random.Generator) -> Picture:
    """The finest level of one texture, (size, size, 4) 0..255."""
    properties = MATERIALS[material]
    picture = _PAINTERS[material](rng, properties.texels)
    picture[..., 3] = np.maximum(picture[..., 3], 255 * properties.gloss)
    return picture
