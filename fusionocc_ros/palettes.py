"""Colours of classes by name, as the parameter ``palette`` and the service choose them. ROS-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fusionocc_core.grids import Color, LabelSet
from fusionocc_core.viz import palettes

DEFAULT = "default"

PALETTES: Mapping[str, Mapping[str, Color]] = {
    DEFAULT: {},
    **{name: colors for name, colors in palettes.PALETTES.items() if name != palettes.DEFAULT},
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
