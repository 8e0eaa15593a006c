"""One picture of a moment, of one size whatever is there: cameras with points, volumes in perspective and from above.

The frames of a video, the screenshot of the viewer and the examples of a report are all made here.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from fusionocc_core.grids import LabelSet
from fusionocc_core.structures import UNTRAINED, Occupancy
from fusionocc_core.viz.birds_eye import birds_eye
from fusionocc_core.viz.canvas import FAINT_INK, PAPER, WARNING, Picture, blank, fit, paste, text_size, write
from fusionocc_core.viz.difference import truth_as_occupancy
from fusionocc_core.viz.overlay import cloud_from_above, overlaid
from fusionocc_core.viz.overview import camera_mosaic, legend
from fusionocc_core.viz.palettes import recolored
from fusionocc_core.viz.perspective import perspective
from fusionocc_core.viz.view_frame import ViewFrame

WIDTH, HEIGHT = 1920, 1080
MARGIN = 16
TITLE = 54
LEFT = 1180
"""Width of the column with cameras and perspective views."""

MOSAIC = 440
"""Height of the cameras."""

LEGEND = 200
"""Height of the legend."""


@dataclass(frozen=True, kw_only=True)
class _Panel:
    """A volume with its name."""

    name: str
    occupancy: Occupancy


def scene_picture(frame: ViewFrame, *, title: str = "", palette: str | None = None, boxes: bool = True) -> Picture:
    """Picture (1080, 1920, 3) of a moment; what a source does not have leaves room for the rest.

    Args:
        frame: the moment.
        title: stands before its scene and time.
        palette: colours of the classes; None takes those of the label sets.
        boxes: draw annotated boxes into the camera pictures.

    Raises:
        ValueError: the palette has no colour for a class.
    """
    panels = _panels(frame, palette)
    picture = blank(HEIGHT, WIDTH)
    _write_title(picture, frame, title)
    top = TITLE
    if frame.sensors is not None and frame.sensors.cameras:
        drawn = overlaid(frame.sensors, boxes=frame.boxes if boxes else ())
        height = MOSAIC if panels else HEIGHT - TITLE - MARGIN
        paste(picture, (MARGIN, top), fit(camera_mosaic(drawn, width=LEFT), height, LEFT))
        top += height + MARGIN
    solid = [panel for panel in panels if panel.name != "difference"]
    _row_of_views(picture, solid, top)
    if panels:
        _column_from_above(picture, panels)
    elif frame.sensors is not None and frame.sensors.lidar is not None:
        side = WIDTH - LEFT - 3 * MARGIN
        paste(picture, (LEFT + 2 * MARGIN, TITLE), cloud_from_above(frame.sensors.lidar, side))
    return picture


def _panels(frame: ViewFrame, palette: str | None) -> list[_Panel]:
    truth = None if frame.truth is None else truth_as_occupancy(frame.truth, frame.stamp_ns)
    named = {"prediction": frame.prediction, "truth": truth}
    panels = [
        _Panel(name=name, occupancy=one if palette is None else recolored(one, palette))
        for name, one in named.items()
        if one is not None
    ]
    compared = frame.compared()
    return panels if compared is None else [*panels, _Panel(name="difference", occupancy=compared)]


def _row_of_views(picture: Picture, panels: list[_Panel], top: int) -> None:
    """Perspective views side by side, down to the margin."""
    if not panels:
        return
    height = HEIGHT - MARGIN - top
    width = (LEFT - MARGIN * (len(panels) - 1)) // len(panels)
    for k, panel in enumerate(panels):
        view = perspective(panel.occupancy, height=height, width=width)
        write(view, (10, 8), panel.name, 18, halo=PAPER)
        paste(picture, (MARGIN + k * (width + MARGIN), top), view)


def _column_from_above(picture: Picture, panels: list[_Panel]) -> None:
    """Views from above, one large or several small ones, with the legend below."""
    left, width = LEFT + 2 * MARGIN, WIDTH - LEFT - 3 * MARGIN
    height = HEIGHT - TITLE - LEGEND - 2 * MARGIN
    columns = 1 if len(panels) < 2 else 2
    rows = -(-len(panels) // columns) if panels else 1
    cell = min((width - MARGIN * (columns - 1)) // columns, (height - MARGIN * (rows - 1)) // rows)
    for k, panel in enumerate(panels):
        whole = birds_eye(panel.occupancy)
        above = np.asarray(cv2.resize(whole, (cell, cell), interpolation=cv2.INTER_AREA), np.uint8)
        write(above, (8, 6), panel.name, 16, halo=PAPER)
        at = (left + (k % columns) * (cell + MARGIN), TITLE + (k // columns) * (cell + MARGIN))
        paste(picture, at, above)
    sets: list[LabelSet] = []
    for panel in panels:
        if panel.occupancy.label_set not in sets:
            sets.append(panel.occupancy.label_set)
    used = TITLE + rows * (cell + MARGIN)
    for label_set in sets:
        part = legend(label_set, width=width)
        room = HEIGHT - MARGIN - used
        if part.shape[0] > room:
            part = fit(part, room, width) if room > 40 else part[:0]
        paste(picture, (left, used), part)
        used += part.shape[0] + MARGIN // 2


def _write_title(picture: Picture, frame: ViewFrame, title: str) -> None:
    """Which moment it is, which network, and whether it was trained at all."""
    words = [title, frame.scene, f"{frame.stamp_ns / 1e9:.2f} s"]
    write(picture, (MARGIN, 12), "   ".join(word for word in words if word), 24)
    prediction = frame.prediction
    if prediction is None:
        return
    note, color = prediction.model, FAINT_INK
    if prediction.trained_on == UNTRAINED:
        note, color = f"{prediction.model}: {UNTRAINED}, the labels mean nothing", WARNING
    write(picture, (WIDTH - MARGIN - text_size(note, 18)[0], 18), note, 18, color)
