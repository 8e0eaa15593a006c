"""One picture that says it all: bird's eye and perspective beside the camera pictures, with a title and a legend."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from fusionocc_core.grids import LabelSet
from fusionocc_core.structures import UNTRAINED, CameraImage, Occupancy, SensorFrame
from fusionocc_core.viz.birds_eye import birds_eye
from fusionocc_core.viz.canvas import FAINT_INK, INK, PAPER, WARNING, Picture, blank, fit, paste, text_size, write
from fusionocc_core.viz.gaussian_pictures import gaussians_in_perspective
from fusionocc_core.viz.perspective import perspective

WIDTH = 1920
"""Of the overview, pixels."""

MARGIN = 20
TITLE_HEIGHT = 74
LEFT_WIDTH = 1160
"""Of the column with the cameras and the perspective view; the bird's eye and the legend share the rest."""

PERSPECTIVE_HEIGHT = 600
GAP = 6
"""Between neighbouring camera pictures."""

CAMERA_FIELD = (28, 31, 36)
"""Behind camera pictures that do not fill their cell, and in cells without a camera."""

FRAME = (200, 204, 210)
"""Around the bird's eye view."""

SWATCH, LINE = 18, 28
"""Edge of a colour field and height of a line in the legend, pixels."""


def camera_mosaic(frame: SensorFrame, *, width: int = LEFT_WIDTH) -> Picture:
    """The frame's pictures side by side: cameras that look forward above, the others below, rows from left to right.

    Args:
        frame: Any number of cameras, of any sizes.
        width: Of the result, pixels; its height follows from the pictures.

    Raises:
        ValueError: the width leaves less than a pixel for a picture.
    """
    rows = _camera_rows(frame.cameras)
    columns = max((len(row) for row in rows), default=1)
    cell_width = (width - GAP * (columns - 1)) // columns
    if cell_width < 1:
        raise ValueError(f"width={width}: too little for {columns} pictures side by side")
    aspect = max((camera.image.shape[0] / camera.image.shape[1] for camera in frame.cameras), default=9 / 16)
    cell_height = max(1, round(cell_width * aspect))
    mosaic = blank(max(1, len(rows)) * (cell_height + GAP) - GAP, width, PAPER)
    if not rows:
        write(mosaic, (16, 16), "no camera", 18, FAINT_INK)
    for r, row in enumerate(rows):
        indent = (width - len(row) * cell_width - (len(row) - 1) * GAP) // 2
        for c, camera in enumerate(row):
            cell = fit(camera.image, cell_height, cell_width, CAMERA_FIELD)
            age_ms = (frame.stamp_ns - camera.stamp_ns) / 1e6
            label = f"{camera.name}   {-age_ms:+.0f} ms"
            write(cell, (10, cell_height - 26), label, 15, (255, 255, 255), halo=(20, 20, 20))
            paste(mosaic, (indent + c * (cell_width + GAP), r * (cell_height + GAP)), cell)
    return mosaic


def _camera_rows(cameras: tuple[CameraImage, ...]) -> list[list[CameraImage]]:
    """Front and rear cameras, each row from left to right as the pictures lie around the vehicle."""

    def heading(camera: CameraImage) -> float:
        forward, left = camera.cam2ego[:2, 2]
        return float(np.degrees(np.arctan2(left, forward)))

    front = sorted((c for c in cameras if abs(heading(c)) <= 90.0), key=heading, reverse=True)
    rear = sorted((c for c in cameras if abs(heading(c)) > 90.0), key=lambda c: heading(c) % 360.0)
    return [row for row in (front, rear) if row]


def legend(label_set: LabelSet, *, counts: NDArray[np.integer] | None = None, width: int = 700) -> Picture:
    """Colour field and name of every class but free space, in as many columns as fit.

    Args:
        label_set: Names and colours.
        counts: Voxels of each class, as ``class_counts`` gives them; classes without any are then left out.
        width: Of the result, pixels; its height follows from the number of classes.
    """
    ids = [i for i in range(label_set.num) if i != label_set.free and (counts is None or counts[i] > 0)]
    texts = [label_set.names[i].replace("_", " ") + ("" if counts is None else f"  {counts[i]:,}") for i in ids]
    longest = max((text_size(text, 15)[0] for text in texts), default=0)
    columns = max(1, min(len(ids), width // (SWATCH + 10 + longest + 24)))
    lines = max(1, -(-len(ids) // columns))
    picture = blank(lines * LINE, width)
    if not ids:
        write(picture, (0, 4), "no occupied voxel", 15, FAINT_INK)
    for n, (i, text) in enumerate(zip(ids, texts, strict=True)):
        x, y = (n // lines) * (width // columns), (n % lines) * LINE
        picture[y + 4 : y + 4 + SWATCH, x : x + SWATCH] = label_set.colors[i]
        write(picture, (x + SWATCH + 10, y + 4), text, 15)
    return picture


def class_counts(occupancy: Occupancy) -> NDArray[np.int64]:
    """(num,) voxels of each class of the label set; unknown voxels are in none of them."""
    return np.bincount(occupancy.labels.ravel(), minlength=256)[: occupancy.label_set.num]


def overview(frame: SensorFrame, occupancy: Occupancy, *, title: str = "") -> Picture:
    """Picture 1920 wide: title, camera pictures above the perspective view, bird's eye above the legend.

    Where the network has Gaussians, their ellipsoids are drawn below the voxels of the perspective view.

    Args:
        frame: What the sensors saw.
        occupancy: What the network made of it; "untrained weights" in ``trained_on`` is printed large.
        title: Replaces the scene and time of the frame.
    """
    right_width = WIDTH - LEFT_WIDTH - 3 * MARGIN
    mosaic = camera_mosaic(frame)
    above = birds_eye(occupancy)
    above = np.asarray(
        cv2.resize(above, (right_width, right_width * above.shape[0] // above.shape[1]), interpolation=cv2.INTER_AREA)
    )
    classes = legend(occupancy.label_set, counts=class_counts(occupancy), width=right_width)
    views = [perspective(occupancy, height=PERSPECTIVE_HEIGHT, width=LEFT_WIDTH)]
    if occupancy.gaussians is not None:
        views.append(gaussians_in_perspective(occupancy, height=PERSPECTIVE_HEIGHT, width=LEFT_WIDTH))
    left_height = mosaic.shape[0] + len(views) * (MARGIN + PERSPECTIVE_HEIGHT)
    right_height = above.shape[0] + MARGIN + classes.shape[0]
    picture = blank(TITLE_HEIGHT + max(left_height, right_height) + MARGIN, WIDTH)
    _write_title(picture, frame, occupancy, title)
    paste(picture, (MARGIN, TITLE_HEIGHT), mosaic)
    for row, view in enumerate(views):
        top = TITLE_HEIGHT + mosaic.shape[0] + MARGIN + row * (PERSPECTIVE_HEIGHT + MARGIN)
        paste(picture, (MARGIN, top), view)
    right = 2 * MARGIN + LEFT_WIDTH
    paste(picture, (right, TITLE_HEIGHT), above)
    cv2.rectangle(
        picture, (right, TITLE_HEIGHT), (right + above.shape[1] - 1, TITLE_HEIGHT + above.shape[0] - 1), FRAME
    )
    paste(picture, (right, TITLE_HEIGHT + above.shape[0] + MARGIN), classes)
    return picture


def _write_title(picture: Picture, frame: SensorFrame, occupancy: Occupancy, title: str) -> None:
    """Two lines: which frame; which network, on what it was trained, how many voxels."""
    first = title or "   ".join(part for part in (frame.scene, f"{frame.stamp_ns / 1e9:.3f} s") if part)
    write(picture, (MARGIN, 12), first, 24)
    second = f"{occupancy.model or 'occupancy'}   {len(occupancy.occupied()):,} occupied voxels"
    if occupancy.timings is not None:
        second += f"   {occupancy.timings.total_s * 1e3:.0f} ms"
    write(picture, (MARGIN, 44), second, 16, FAINT_INK)
    if occupancy.trained_on == UNTRAINED:
        text = UNTRAINED
        width, _ = text_size(text, 26)
        write(picture, (WIDTH - MARGIN - width, 12), text, 26, WARNING)
        note = "the labels below mean nothing yet"
        write(picture, (WIDTH - MARGIN - text_size(note, 16)[0], 46), note, 16, WARNING)
    elif occupancy.trained_on:
        text = f"trained on {occupancy.trained_on}"
        write(picture, (WIDTH - MARGIN - text_size(text, 16)[0], 20), text, 16, INK)
