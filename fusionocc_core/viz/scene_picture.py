"""One picture of a moment, of one size whatever is there: cameras with points, volumes in perspective and from above.

The frames of a video, the screenshot of the viewer and the examples of a report are all made here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from fusionocc_core.grids import LabelSet
from fusionocc_core.structures import UNTRAINED, Occupancy, SensorFrame
from fusionocc_core.viz.birds_eye import birds_eye
from fusionocc_core.viz.canvas import FAINT_INK, PAPER, WARNING, Picture, blank, fit, paste, shortened, text_size, write
from fusionocc_core.viz.difference import truth_as_occupancy
from fusionocc_core.viz.gaussian_pictures import gaussians_in_perspective
from fusionocc_core.viz.overlay import cloud_from_above, overlaid
from fusionocc_core.viz.overview import camera_mosaic, legend
from fusionocc_core.viz.palettes import recolored, with_palette
from fusionocc_core.viz.perspective import perspective
from fusionocc_core.viz.rendered import below_each_other
from fusionocc_core.viz.view_frame import ViewFrame

WIDTH, HEIGHT = 1920, 1080
MARGIN = 16
TITLE = 54
LEFT = 1180
"""Width of the column with cameras and perspective views."""

MOSAIC, MOSAIC_RENDERED = 440, 640
"""Height of the cameras, and with depth and classes of the answer below each."""

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
        drawn = _with_rendered(overlaid(frame.sensors, boxes=frame.boxes if boxes else ()), frame, palette)
        height = (MOSAIC_RENDERED if frame.rendered else MOSAIC) if panels else HEIGHT - TITLE - MARGIN
        paste(picture, (MARGIN, top), fit(camera_mosaic(drawn, width=LEFT), height, LEFT))
        top += height + MARGIN
    _row_of_views(picture, [panel for panel in panels if panel.name != "difference"], top)
    if panels:
        _column_from_above(picture, panels)
    elif frame.sensors is not None and frame.sensors.lidar is not None:
        side = WIDTH - LEFT - 3 * MARGIN
        paste(picture, (LEFT + 2 * MARGIN, TITLE), cloud_from_above(frame.sensors.lidar, side))
    return picture


def _with_rendered(sensors: SensorFrame, frame: ViewFrame, palette: str | None) -> SensorFrame:
    """The pictures with what the prediction looks like from there below them."""
    if not frame.rendered or frame.prediction is None:
        return sensors
    labels = frame.prediction.label_set if palette is None else with_palette(frame.prediction.label_set, palette)
    cameras = tuple(
        replace(camera, image=below_each_other(camera.image, frame.rendered[camera.name], labels))
        if camera.name in frame.rendered
        else camera
        for camera in sensors.cameras
    )
    return replace(sensors, cameras=cameras)


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
    """Perspective views side by side, down to the margin: of voxels, and of Gaussians where there are some."""
    drawn = [(panel.name, panel.occupancy, perspective) for panel in panels]
    drawn += [("Gaussians", p.occupancy, gaussians_in_perspective) for p in panels if p.occupancy.gaussians is not None]
    if not drawn:
        return
    height = HEIGHT - MARGIN - top
    width = (LEFT - MARGIN * (len(drawn) - 1)) // len(drawn)
    for k, (name, occupancy, draw) in enumerate(drawn):
        view = draw(occupancy, height=height, width=width)
        write(view, (10, 8), name, 18, halo=PAPER)
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
    write(picture, (MARGIN, 12 if not frame.notes else 2), "   ".join(word for word in words if word), 24)
    if frame.notes:
        write(picture, (MARGIN, 32), shortened("   ".join(frame.notes), 15, WIDTH - 2 * MARGIN), 15, WARNING)
    prediction = frame.prediction
    if prediction is None:
        return
    note, color = prediction.model, FAINT_INK
    if prediction.trained_on == UNTRAINED:
        note, color = f"{prediction.model}: {UNTRAINED}, the labels mean nothing", WARNING
    write(picture, (WIDTH - MARGIN - text_size(note, 18)[0], 18), note, 18, color)
