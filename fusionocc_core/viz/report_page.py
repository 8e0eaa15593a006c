"""A page of HTML that holds everything itself: text, tables, pictures, and voxels that turn. It opens from disk."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np
from rich.table import Table

from fusionocc_core.grids import LabelSet
from fusionocc_core.structures import Occupancy
from fusionocc_core.viz.canvas import Picture
from fusionocc_core.viz.surface import solid_mask

SUFFIXES = (".html", ".htm")

JPEG_QUALITY = 82

MOST_COLORS = 64
"""That the viewer's program has room for."""

FALLBACK = (128, 128, 128)
"""Of labels that the label set has no colour for."""


class ReportPage:
    """Grows from top to bottom; ``html`` gives the whole of it.

    Args:
        title: of the page.
        subtitle: one line below it.
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self._title = title
        self._parts = [f"<h1>{escape(title)}</h1>"]
        if subtitle:
            self._parts.append(f'<p class="faint">{escape(subtitle)}</p>')
        self._has_voxels = False

    def heading(self, text: str) -> None:
        """Begin a section."""
        self._parts.append(f"<h2>{escape(text)}</h2>")

    def paragraph(self, text: str, *, warning: bool = False) -> None:
        """Add a line of text."""
        self._parts.append(f"<p{' class=warning' if warning else ''}>{escape(text)}</p>")

    def settings(self, pairs: Mapping[str, object]) -> None:
        """Add names and values."""
        rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in pairs.items())
        self._parts.append(f"<dl>{rows}</dl>")

    def table(self, table: Table) -> None:
        """Add a rich table: the one that the terminal shows."""
        head = "".join(f"<th>{escape(_plain(column.header))}</th>" for column in table.columns)
        columns = [[_plain(cell) for cell in column.cells] for column in table.columns]
        body = "".join(
            f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in zip(*columns, strict=True)
        )
        title = f"<h3>{escape(_plain(table.title))}</h3>" if table.title else ""
        caption = f"<caption>{escape(_plain(table.caption))}</caption>" if table.caption else ""
        self._parts.append(f'{title}<div class="wide"><table>{caption}<tr>{head}</tr>{body}</table></div>')

    def picture(self, picture: Picture, caption: str = "", *, photo: bool = False) -> None:
        """Add a picture: as PNG, or as JPEG where it holds photographs."""
        suffix, kind = (".jpg", "jpeg") if photo else (".png", "png")
        options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if photo else [cv2.IMWRITE_PNG_COMPRESSION, 9]
        encoded, data = cv2.imencode(suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)
        if not encoded:
            raise ValueError(f"OpenCV cannot encode a picture of {picture.dtype} {picture.shape} as {kind}")
        source = f"data:image/{kind};base64,{base64.b64encode(data.tobytes()).decode()}"
        self._parts.append(
            f'<figure><img src="{source}" alt="{escape(caption)}" width="{picture.shape[1]}" '
            f'height="{picture.shape[0]}"><figcaption>{escape(caption)}</figcaption></figure>'
        )

    def voxels(self, volumes: Mapping[str, Occupancy], caption: str = "") -> None:
        """Add volumes that turn, one shown at a time, with a button each.

        Args:
            volumes: by the name on the button; all on one grid.
            caption: below.

        Raises:
            ValueError: no volume, several grids, or one too large: the page counts voxels along an axis in a byte.
        """
        grids = {occupancy.grid for occupancy in volumes.values()}
        if len(grids) != 1:
            raise ValueError(f"voxels: {len(volumes)} volumes on {len(grids)} grids; expected one grid for all")
        (grid,) = grids
        if max(grid.shape) > 256:
            raise ValueError(f"voxels: a grid of {grid.shape} voxels; expected at most 256 along each axis")
        content = {
            "grid": {"lower": grid.lower, "size": grid.voxel_size, "shape": grid.shape},
            "volumes": [{"name": name, **_packed(occupancy)} for name, occupancy in volumes.items()],
        }
        buttons = "".join(
            f'<button type="button" aria-pressed="{"false" if k else "true"}">{escape(name)}</button>'
            for k, name in enumerate(volumes)
        )
        sets = dict.fromkeys(occupancy.label_set for occupancy in volumes.values())
        legends = "".join(_legend(label_set) for label_set in sets)
        data = json.dumps(content).replace("</", "<\\/")
        self._parts.append(
            f'<figure class="voxels">{buttons}<canvas></canvas><p class="message faint">Drag to turn, wheel to come '
            f"nearer, shift and drag to move.</p>{legends}<figcaption>{escape(caption)}</figcaption>"
            f'<script type="application/json">{data}</script></figure>'
        )
        self._has_voxels = True

    def html(self) -> str:
        """The page."""
        package = files("fusionocc_core.viz")
        style = (package / "report.css").read_text(encoding="utf-8")
        script = (package / "voxel_viewer.js").read_text(encoding="utf-8") if self._has_voxels else ""
        body = "\n".join(self._parts)
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(self._title)}</title>'
            '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
            f"<style>\n{style}</style></head>\n<body>\n{body}\n<script>\n{script}</script></body></html>\n"
        )

    def write(self, path: Path) -> None:
        """Write the page; it appears whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        unfinished.write_text(self.html(), encoding="utf-8")
        unfinished.replace(path)


def check_report_path(path: Path) -> None:
    """Refuse, before hours of work, a place where no report can be written.

    Raises:
        ValueError: another ending than .html.
        FileNotFoundError: there is no such folder.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"--report {path}: expected a file name that ends in .html")
    if not path.resolve().parent.is_dir():
        raise FileNotFoundError(f"--report {path}: there is no folder {path.resolve().parent}")


def _plain(cell: object) -> str:
    """The words of a cell, without colours."""
    return str(getattr(cell, "plain", cell))


def _packed(occupancy: Occupancy) -> dict[str, object]:
    """Visible voxels as voxel_viewer.js wants them, and the colours of the labels."""
    solid = solid_mask(occupancy)
    padded = np.pad(solid, 1)
    sides = np.zeros(solid.shape, np.uint8)
    for axis in range(3):
        for bit, start in ((2 * axis, 0), (2 * axis + 1, 2)):
            part = [slice(1, -1)] * 3
            part[axis] = slice(start, start + solid.shape[axis])
            sides |= np.where(padded[tuple(part)], 0, 1 << bit).astype(np.uint8)
    sides[~solid] = 0
    cells = np.argwhere(sides > 0)
    where = tuple(cells.T)
    colors = [list(color) for color in occupancy.label_set.colors][: MOST_COLORS - 1]
    labels = np.minimum(occupancy.labels[where], len(colors)).astype(np.uint8)
    data = np.column_stack([cells.astype(np.uint8), labels, sides[where]])
    return {"colors": [*colors, list(FALLBACK)], "voxels": base64.b64encode(data.tobytes()).decode()}


def _legend(label_set: LabelSet) -> str:
    return f'<p class="legend">{"".join(_entries(label_set.names, label_set.colors, label_set.free))}</p>'


def _entries(names: Sequence[str], colors: Sequence[tuple[int, int, int]], free: int) -> Iterable[str]:
    for k, (name, (red, green, blue)) in enumerate(zip(names, colors, strict=True)):
        if k != free:
            swatch = f'<span class="swatch" style="background:rgb({red},{green},{blue})"></span>'
            yield f'<span class="name">{swatch}{escape(name.replace("_", " "))}</span>'
