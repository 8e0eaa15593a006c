"""Colours of the Occ3D classes as the projects of the field draw them, and a set for colour-blind readers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fusionocc_core.grids import OCC3D_LABELS, Color, LabelSet
from fusionocc_core.structures import Occupancy

DEFAULT = "fusionocc"

_NAMES = tuple(name for k, name in enumerate(OCC3D_LABELS.names) if k != OCC3D_LABELS.free)


def _of(*colors: Color) -> dict[str, Color]:
    """By class name, for colours in the order of Occ3D's ids."""
    return dict(zip(_NAMES, colors, strict=True))


_FLASHOCC = _of(
    (0, 0, 0), (255, 120, 50), (255, 192, 203), (255, 255, 0), (0, 150, 245), (0, 255, 255), (200, 180, 0),
    (255, 0, 0), (255, 240, 150), (135, 60, 0), (160, 32, 240), (255, 0, 255), (175, 0, 75), (75, 0, 75),
    (150, 240, 80), (230, 230, 250), (0, 175, 0),
)  # fmt: skip

PALETTES: Mapping[str, Mapping[str, Color]] = {
    DEFAULT: _of(*(OCC3D_LABELS.colors[OCC3D_LABELS.names.index(name)] for name in _NAMES)),
    "flashocc": _FLASHOCC,
    "surroundocc": {**_FLASHOCC, "other_flat": (139, 137, 137)},
    "gaussianformer": {**_FLASHOCC, "other_flat": (139, 137, 137), "motorcycle": (255, 127, 0)},
    "nuscenes": _of(
        (0, 0, 0), (112, 128, 144), (220, 20, 60), (255, 69, 0), (255, 158, 0), (233, 150, 70), (255, 61, 99),
        (0, 0, 230), (47, 79, 79), (255, 140, 0), (255, 99, 71), (0, 207, 191), (175, 0, 75), (75, 0, 75),
        (112, 180, 60), (222, 184, 135), (0, 175, 0),
    ),
    "semantickitti": _of(
        (0, 0, 0), (255, 120, 50), (100, 230, 245), (100, 80, 250), (100, 150, 245), (0, 0, 255), (30, 60, 150),
        (255, 30, 30), (255, 0, 0), (0, 0, 255), (80, 30, 180), (255, 0, 255), (175, 0, 75), (75, 0, 75),
        (150, 240, 80), (255, 200, 0), (0, 175, 0),
    ),
    "colorblind": _of(
        (25, 76, 153), (249, 143, 8), (148, 126, 238), (206, 252, 113), (51, 59, 237), (50, 139, 163), (80, 87, 73),
        (178, 89, 8), (204, 184, 248), (121, 38, 8), (13, 8, 144), (140, 155, 130), (241, 252, 187), (10, 8, 8),
        (176, 176, 101), (226, 218, 227), (8, 67, 96),
    ),
}  # fmt: skip
"""By name, the colour of each class.

``fusionocc`` is ours. Of the field: ``flashocc`` (also SparseOcc), ``surroundocc`` (also DAOcc), ``gaussianformer``
(also STCOcc), ``nuscenes`` (its devkit; buses as rigid ones), ``semantickitti`` (its API's classes nearest to ours:
fence for barrier, traffic sign for traffic cone, other vehicle for construction vehicle and trailer).

``colorblind`` was found by a search that pushes the two most similar classes apart, in CIELAB, as seen with full colour
vision, without red cones and without green cones (Machado et al., 2009). The least difference is 26; with the default
colours it is 5, and with the others of the field less.
"""


def with_palette(label_set: LabelSet, palette: str) -> LabelSet:
    """The same classes in other colours; free space keeps its own.

    Raises:
        ValueError: no such palette, or it has no colour for a class.
    """
    if palette not in PALETTES:
        raise ValueError(f"palette={palette!r}: expected one of {', '.join(PALETTES)}")
    colors = PALETTES[palette]
    without = [name for k, name in enumerate(label_set.names) if k != label_set.free and name not in colors]
    if without:
        raise ValueError(
            f"palette={palette!r} has no colour for {', '.join(without)} of label set {label_set.name!r}; "
            "draw it in its own colours (leave the palette out)"
        )
    free = label_set.colors[label_set.free]
    chosen = (free if k == label_set.free else colors[name] for k, name in enumerate(label_set.names))
    return replace(label_set, colors=tuple(chosen))


def recolored(occupancy: Occupancy, palette: str) -> Occupancy:
    """The same volume in the colours of a palette.

    Raises:
        ValueError: as ``with_palette``.
    """
    return replace(occupancy, label_set=with_palette(occupancy.label_set, palette))
