"""The viewer and the report in a real browser: the scene appears, in the right place, and the console stays clean."""

import time

import numpy as np
import pytest
from browser import open_page
from view_cases import BUS, CAR, ROAD, Frames, labels, moment, occupancy

from fusionocc_core.commands.view import recording
from fusionocc_core.commands.view_predicting import RenderingSource
from fusionocc_core.grids import OCC3D_LABELS
from fusionocc_core.viz.difference import DIFFERENCE_LABELS, WRONG_CLASS
from fusionocc_core.viz.report_page import ReportPage
from fusionocc_core.viz.rerun_log import RerunLog
from fusionocc_core.viz.video import VideoWriter
from fusionocc_core.viz.web_view import web_view

pytestmark = pytest.mark.slow

PATIENCE_S = 240.0
"""A busy machine without a GPU takes minutes for what an idle one draws in seconds."""

YELLOW, BLUE, PURPLE = (OCC3D_LABELS.colors[label] for label in (BUS, CAR, ROAD))
ORANGE = DIFFERENCE_LABELS.colors[WRONG_CLASS]


def share(picture, color):
    """Of pixels that have a colour, at whatever brightness, but not nearly black."""
    pixels = picture.reshape(-1, 3).astype(float)
    length = np.linalg.norm(pixels, axis=1)
    likeness = pixels @ np.asarray(color, float) / np.maximum(length, 1) / np.linalg.norm(color)
    return float(((likeness > 0.993) & (length > 90)).mean())


def where(picture, color):
    """Middle (x, y) of the pixels of a colour, as shares of the picture."""
    pixels = picture.astype(float)
    length = np.linalg.norm(pixels, axis=-1)
    likeness = pixels @ np.asarray(color, float) / np.maximum(length, 1) / np.linalg.norm(color)
    rows, columns = np.nonzero((likeness > 0.993) & (length > 90))
    return columns.mean() / picture.shape[1], rows.mean() / picture.shape[0]


def test_the_report_turns_voxels_without_a_network(chromium, tmp_path):
    page = ReportPage("evaluation of a made-up network")
    wrong = labels()
    wrong[labels() == CAR] = BUS
    page.voxels({"prediction": occupancy(wrong), "truth": occupancy()}, "one keyframe")
    page.write(tmp_path / "report.html")
    with open_page(chromium, (tmp_path / "report.html").as_uri()) as browser:
        figure = browser.handle.locator("figure.voxels")
        browser.handle.wait_for_selector("figure.voxels[data-state=ready]", timeout=PATIENCE_S * 1000)
        browser.handle.mouse.move(600, 500)
        browser.handle.mouse.down()  # touching it ends its turning, so that what is where is known
        browser.handle.mouse.up()
        predicted = browser.picture("figure.voxels canvas")
        assert share(predicted, YELLOW) > 0.004
        assert share(predicted, BLUE) == 0
        assert share(predicted, PURPLE) > 0.05
        # Seen from behind and above: what is ahead of the middle lies above it, below the sky.
        assert 0.2 < where(predicted, YELLOW)[1] < where(predicted, PURPLE)[1] < 0.8
        figure.get_by_role("button", name="truth").click()
        browser.handle.wait_for_timeout(500)
        true = browser.picture("figure.voxels canvas")
        assert share(true, BLUE) > 0.004
        assert share(true, YELLOW) == 0
        np.testing.assert_allclose(where(true, BLUE), where(predicted, YELLOW), atol=0.1)
        assert browser.errors == []
        assert browser.requests == [(tmp_path / "report.html").as_uri()]


def wait_for_panes(browser):
    """Shares of what the three panes show, once each shows something and twice the same, or when patience ends.

    The viewer draws before all data have come, and lays its panes out anew when the layout comes, later on a busy
    machine.
    """
    deadline = time.monotonic() + PATIENCE_S
    before = None
    while True:
        picture = browser.picture()
        below = picture[picture.shape[0] // 2 :]  # cameras are above
        predicted, true, compared = np.array_split(below, 3, axis=1)
        seen = {
            "bus in prediction": share(predicted, YELLOW),
            "car in prediction": share(predicted, BLUE),
            "car in truth": share(true, BLUE),
            "bus in truth": share(true, YELLOW),
            "road in truth": share(true, PURPLE),
            "difference": share(compared, ORANGE),
        }
        drawn = all(seen[name] > 0 for name in ("bus in prediction", "car in truth", "road in truth", "difference"))
        if (drawn and seen == before) or time.monotonic() > deadline:
            return seen
        before = seen
        browser.handle.wait_for_timeout(2000)


def test_the_viewer_shows_prediction_truth_and_difference_side_by_side(chromium):
    with web_view(port=0, data_port=0) as web, recording() as rec:
        rec.connect_grpc(web.data_url)
        log = RerunLog(rec)
        for frame in RenderingSource(Frames(*map(moment, range(3))), 64):
            log.add(frame)
        with open_page(chromium, web.url) as browser:
            browser.handle.wait_for_selector("body[data-state=ready]", timeout=PATIENCE_S * 1000)
            seen = wait_for_panes(browser)
            assert seen["bus in prediction"] > 0.001
            assert seen["car in truth"] > 0.001
            assert seen["difference"] > 0.001
            assert seen["road in truth"] > 0.02
            # Boxes and path are yellowish too, but thin.
            assert seen["car in prediction"] < 0.2 * seen["car in truth"]
            assert seen["bus in truth"] < 0.4 * seen["bus in prediction"]
            picture = browser.picture()
            # The cameras' grey pictures are above.
            above = picture[: picture.shape[0] // 2]
            assert share(above, (90, 90, 90)) > 0.1
            # Beside them is what the answer looks like from there.
            assert share(above, YELLOW) > 0.004
            assert share(above, PURPLE) > 0.01
            assert browser.errors == []
            hosts = {url.split("/")[2].split(":")[0] for url in browser.requests}
            assert hosts == {"127.0.0.1"}


def test_a_browser_plays_the_video(chromium, tmp_path):
    with VideoWriter(tmp_path / "a.mp4", fps=2) as writer:
        for value in (40, 200):
            writer.write(np.full((120, 160, 3), (value, 30, 30), np.uint8))
    (tmp_path / "page.html").write_text('<link rel="icon" href="data:,"><video src="a.mp4" muted></video>')
    with open_page(chromium, (tmp_path / "page.html").as_uri()) as browser:
        ready = "document.querySelector('video').readyState >= 2"
        browser.handle.wait_for_function(ready, timeout=PATIENCE_S * 1000)
        length = browser.handle.evaluate("document.querySelector('video').duration")
        assert length == pytest.approx(1.0, abs=0.1)
        assert browser.picture("video")[60, 80].tolist() == pytest.approx([40, 30, 30], abs=8)
        assert browser.errors == []
