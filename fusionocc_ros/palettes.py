"""Colours of classes by name: what other tools paint the classes of Occ3D with. NumPy-free, ROS-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fusionocc_core.grids import OCC3D_LABELS, Color, LabelSet

DEFAULT = "default"

_SURROUNDOCC: tuple[Color, ...] = (
    (0, 0, 0),
    (255, 120, 50),
    (255, 192, 203),
    (255, 255, 0),
    (0, 150, 245),
    (0, 255, 255),
    (200, 180, 0),
    (255, 0, 0),
    (255, 240, 150),
    (135, 60, 0),
    (160, 32, 240),
    (255, 0, 255),
    (139, 137, 137),
    (75, 0, 75),
    (150, 240, 80),
    (230, 230, 250),
    (0, 175, 0),
)
_NUSCENES: tuple[Color, ...] = (
    (0, 0, 0),
    (112, 128, 144),
    (220, 20, 60),
    (255, 127, 80),
    (255, 158, 0),
    (233, 150, 70),
    (255, 61, 99),
    (0, 0, 230),
    (47, 79, 79),
    (255, 140, 0),
    (255, 99, 71),
    (0, 207, 191),
    (175, 0, 75),
    (75, 0, 75),
    (112, 180, 60),
    (222, 184, 135),
    (0, 175, 0),
)
# Hues of Okabe and Ito (2008), which people with each of the common colour deficiencies tell apart: one hue a group of
# classes (two-wheelers, cars, long vehicles, people, small things, ground, walls, plants), shades within the group.
_COLORBLIND: tuple[Color, ...] = (
    (90, 90, 90),
    (230, 159, 0),
    (86, 180, 233),
    (0, 60, 110),
    (0, 114, 178),
    (0, 88, 140),
    (140, 205, 240),
    (213, 94, 0),
    (240, 228, 66),
    (0, 76, 120),
    (0, 100, 160),
    (170, 170, 170),
    (140, 140, 140),
    (204, 121, 167),
    (120, 200, 170),
    (215, 205, 190),
    (0, 158, 115),
)


def _of_occ3d(colors: Sequence[Color]) -> dict[str, Color]:
    names = [name for name in OCC3D_LABELS.names if name != OCC3D_LABELS.names[OCC3D_LABELS.free]]
    return dict(zip(names, colors, strict=True))


PALETTES: dict[str, dict[str, Color]] = {
    DEFAULT: {},
    "surroundocc": _of_occ3d(_SURROUNDOCC),
    "gaussianformer": _of_occ3d(_SURROUNDOCC) | {"motorcycle": (255, 127, 0)},
    "flashocc": _of_occ3d(_SURROUNDOCC) | {"other_flat": (175, 0, 75)},
    "nuscenes": _of_occ3d(_NUSCENES),
    "colorblind": _of_occ3d(_COLORBLIND),
}
"""Palette to class name to colour; a class that is not in a palette keeps the colour of its label set."""


def paint(label_set: LabelSet, palette: str) -> LabelSet:
    """The same label set in the colours of a palette.

    Raises:
        ValueError: no such palette.
    """
    if palette not in PALETTES:
        raise ValueError(f"palette: {palette!r} is not one of {', '.join(PALETTES)}")
    if not PALETTES[palette]:
        return label_set
    chosen = PALETTES[palette]
    pairs = zip(label_set.names, label_set.colors, strict=True)
    return replace(label_set, colors=tuple(chosen.get(name, color) for name, color in pairs))
