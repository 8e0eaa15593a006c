"""Processes for tests of the engine."""

import multiprocessing
import os
import sys
from multiprocessing import forkserver
from pathlib import Path

import pytest

HERE = str(Path(__file__).parent)
sys.path.insert(0, HERE)


@pytest.fixture(scope="session")
def spawner():
    """A multiprocessing context whose processes start in milliseconds: their parent has imported PyTorch already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preloaded"])
    before = os.environ.get("PYTHONPATH")
    # The server looks for what it shall preload here, not along sys.path.
    os.environ["PYTHONPATH"] = os.pathsep.join([HERE, str(Path(HERE).parents[1]), *([before] if before else [])])
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)
    return context


@pytest.fixture(autouse=True)
def one_thread():
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
