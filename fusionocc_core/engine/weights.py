"""The network behind what an evaluation is given: a file of ours, an official one, a checkpoint, a run's folder."""

from __future__ import annotations

from pathlib import Path

from fusionocc_core.checkpoints import ModelCard, load_strictly
from fusionocc_core.engine.run_folder import load_checkpoint
from fusionocc_core.models.network import OccupancyNetwork
from fusionocc_core.presets import decode_network_config, load_model, make_network

FROM_A_RUN = ("best.safetensors", "last.safetensors")
"""What is taken from the folder of a run, in this order."""


def load_weights(path: Path, *, preset: str | None = None) -> OccupancyNetwork:
    """A network in evaluation mode, on the CPU.

    Args:
        path: weights that ``save_model`` wrote, an official file (with ``preset``), a training checkpoint (its averaged
            weights are taken), or the folder of a run (its best weights).
        preset: what an official file belongs to.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: a file that does not say what it is, or does not fit.
    """
    if path.is_dir():
        found = next((path / name for name in FROM_A_RUN if (path / name).is_file()), None)
        if found is None:
            raise FileNotFoundError(
                f"{path}: holds neither {' nor '.join(FROM_A_RUN)}; a run writes them as it evaluates"
            )
        path = found
    if preset is not None:
        return load_model(preset, checkpoint=path)
    if path.suffix == ".pt":
        return _from_checkpoint(path)
    return load_model(path)


def _from_checkpoint(path: Path) -> OccupancyNetwork:
    state = load_checkpoint(path)
    recipe = state["run"]["recipe"]
    model = make_network(decode_network_config(recipe["model"]))
    tensors = state["ema"]["average"] if state["ema"] else state["model"]
    load_strictly(model, tensors, source=str(path), target="the network of its recipe")
    model.card = ModelCard(
        preset=recipe["preset"], trained_on=f"{state['run']['data']}, step {state['step']}", source=str(path)
    )
    return model.eval()
