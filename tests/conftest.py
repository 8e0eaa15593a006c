"""Fixtures that every test may use, and the count of skipped tests: a test that stops running must not go unnoticed."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch
from browser import NO_CHROMIUM, find_chromium

ROOT = Path(__file__).resolve().parent.parent

NO_SHARED = "shared/ is not beside the checkout"
OPTIONAL_PACKAGES = {
    "torch_scatter": 1,
    "launch_ros": 1,
    "message_filters": 1,
    "cv_bridge": 1,
    "sensor_msgs_py": 1,
    "triton": 4,
    "ray": 1,
}
"""How many tests each optional package has, all of which skip where it is not installed."""
NO_CUDA = "no CUDA device: compiled kernels and graphs"

# Shells have jobs in the background ignore interrupts, and so would every process that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def goldens() -> Path:
    """Small reference tensors that ship with the repository."""
    return ROOT / "tests" / "goldens"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The optional folder of large test data beside the checkout; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("FUSIONOCC_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(NO_SHARED)
    return folder


@pytest.fixture(scope="session")
def chromium() -> str:
    """The system's browser; tests that need one skip where there is none."""
    found = find_chromium()
    if found is None:
        pytest.skip(NO_CHROMIUM)
    return found


def _expected_skips(items: list[pytest.Item]) -> Counter[str]:
    """Reason -> how many tests have to be skipped for it in a full run on this machine."""
    expected = {
        package: count for package, count in OPTIONAL_PACKAGES.items() if importlib.util.find_spec(package) is None
    }
    if not torch.cuda.is_available():
        expected[NO_CUDA] = 5
    if not Path(os.environ.get("FUSIONOCC_SHARED", ROOT.parent / "shared")).is_dir():
        expected[NO_SHARED] = sum("shared" in getattr(item, "fixturenames", ()) for item in items)
    if find_chromium() is None:
        expected[NO_CHROMIUM] = sum("chromium" in getattr(item, "fixturenames", ()) for item in items)
    return Counter(expected)


def _reason_of(report: pytest.TestReport) -> str:
    text = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr).removeprefix("Skipped: ")
    return next((package for package in OPTIONAL_PACKAGES if package in text.replace("-", "_")), text)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """In a full run, fail if tests were skipped for another reason, or in another number, than said above."""
    option = session.config.option
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    is_full = session.config.args == session.config.getini("testpaths") and not option.keyword
    is_full = is_full and option.markexpr == "not long"  # from pyproject.toml; another expression was typed by hand
    if reporter is None or not is_full or session.shouldstop or option.collectonly:
        return
    found = Counter(_reason_of(report) for report in reporter.stats.get("skipped", []))
    expected = _expected_skips(session.items)
    if found != expected:
        reporter.section("unexpected skips", sep="=", red=True)
        reporter.line(f"skipped: {dict(found)}; expected: {dict(expected)} (tests/conftest.py)")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
