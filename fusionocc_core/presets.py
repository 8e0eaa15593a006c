"""Networks by name, and load_model, which makes or reads one.

A preset is a function that returns a config; a variant of one is ``dataclasses.replace`` on it. The functions lie
beside the networks, in ``models/<network>_presets.py``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch

from fusionocc_core import DEFAULT_PRESET
from fusionocc_core.checkpoints import (
    ModelCard,
    decode_config,
    is_model_file,
    load_strictly,
    read_model,
    read_official,
    without_fresh_weights,
)
from fusionocc_core.models.flashfusion import FlashFusion, FlashFusionConfig
from fusionocc_core.models.flashfusion_presets import flashfusion_mini, flashfusion_r50
from fusionocc_core.models.flashocc import FlashOcc, FlashOccConfig
from fusionocc_core.models.flashocc_presets import (
    flashocc_m0,
    flashocc_m1,
    flashocc_tiny,
    flashocc_tiny_panoptic,
    panoptic_flashocc_depth,
    panoptic_flashocc_tiny,
)
from fusionocc_core.models.flashocc_temporal_presets import (
    flashocc_m2,
    flashocc_m3,
    panoptic_flashocc_depth4d,
    panoptic_flashocc_longterm8f,
)
from fusionocc_core.models.fusionocc import FusionOcc, FusionOccConfig
from fusionocc_core.models.fusionocc_presets import fusionocc_base, fusionocc_tiny
from fusionocc_core.models.gaussian_initialiser import GaussianInitialiser, GaussianInitialiserConfig
from fusionocc_core.models.gaussianformer import GaussianFormer, GaussianFormerConfig
from fusionocc_core.models.gaussianformer_presets import (
    gaussianformer2_6400,
    gaussianformer2_12800,
    gaussianformer2_25600,
    gaussianformer2_tiny,
    gaussianformer_25600_solid,
    gaussianformer_144000,
    gaussianformer_tiny,
)
from fusionocc_core.models.gaussianfusion import GaussianFusion, GaussianFusionConfig
from fusionocc_core.models.gaussianfusion_presets import gaussianfusion_6400, gaussianfusion_tiny
from fusionocc_core.models.network import NetworkConfig, OccupancyNetwork
from fusionocc_core.models.renderocc import RenderOcc, RenderOccConfig
from fusionocc_core.models.renderocc_presets import renderocc_swinb
from fusionocc_core.models.uniocc_presets import uniocc_flash_r50, uniocc_r50, uniocc_tiny
from fusionocc_core.structures import UNTRAINED

PRESETS: dict[str, Callable[[], NetworkConfig]] = {
    "flashfusion-mini": flashfusion_mini,
    "flashfusion-r50": flashfusion_r50,
    "fusionocc-base": fusionocc_base,
    "fusionocc-tiny": fusionocc_tiny,
    "flashocc-m0": flashocc_m0,
    "flashocc-m1": flashocc_m1,
    "flashocc-m2": flashocc_m2,
    "flashocc-m3": flashocc_m3,
    "flashocc-tiny": flashocc_tiny,
    "panoptic-flashocc-tiny": panoptic_flashocc_tiny,
    "panoptic-flashocc-depth": panoptic_flashocc_depth,
    "panoptic-flashocc-depth4d": panoptic_flashocc_depth4d,
    "panoptic-flashocc-longterm8f": panoptic_flashocc_longterm8f,
    "flashocc-tiny-panoptic": flashocc_tiny_panoptic,
    "renderocc-swinb": renderocc_swinb,
    "uniocc-r50": uniocc_r50,
    "uniocc-flash-r50": uniocc_flash_r50,
    "uniocc-tiny": uniocc_tiny,
    "gaussianformer-144000": gaussianformer_144000,
    "gaussianformer-25600-solid": gaussianformer_25600_solid,
    "gaussianformer-tiny": gaussianformer_tiny,
    "gaussianformer2-6400": gaussianformer2_6400,
    "gaussianformer2-12800": gaussianformer2_12800,
    "gaussianformer2-25600": gaussianformer2_25600,
    "gaussianformer2-tiny": gaussianformer2_tiny,
    "gaussianfusion-6400": gaussianfusion_6400,
    "gaussianfusion-tiny": gaussianfusion_tiny,
}

SHIPPED_WEIGHTS = {"flashfusion-mini": "flashfusion-mini.safetensors"}
"""Presets whose trained weights come with the package: their files in fusionocc_core/weights, beside their cards."""

FRESH_SEED = 0
"""What `fusionocc predict` and the node draw fresh weights with, so that all runs have the same ones."""

NETWORKS: tuple[tuple[type[OccupancyNetwork], type[Any]], ...] = (
    (FusionOcc, FusionOccConfig),
    (FlashOcc, FlashOccConfig),
    (FlashFusion, FlashFusionConfig),
    (RenderOcc, RenderOccConfig),
    (GaussianFormer, GaussianFormerConfig),
    (GaussianInitialiser, GaussianInitialiserConfig),
    (GaussianFusion, GaussianFusionConfig),
)
"""Every network with its config. Our files name them by their class."""


def make_network(config: NetworkConfig) -> OccupancyNetwork:
    """The network that a config describes, with fresh weights.

    Raises:
        ValueError: a config of no network that this version knows.
    """
    for network, config_class in _networks():
        if isinstance(config, config_class):
            return network(config)
    raise ValueError(f"make_network: {type(config).__name__} is none of {_config_names()}")


def decode_network_config(encoded: Any) -> NetworkConfig:
    """The config that ``encode_config`` was given, whichever network's it is.

    Raises:
        ValueError: another version wrote it, with other networks or other fields.
    """
    name = encoded.get("class") if isinstance(encoded, Mapping) else None
    for _, config_class in _networks():
        if config_class.__name__ == name:
            return decode_config(config_class, encoded)
    raise ValueError(
        f"a config of class {name}, this version knows {_config_names()}; if the network is your own, import it first"
    )


def _networks() -> list[tuple[type[OccupancyNetwork], type[Any]]]:
    """Ours, then those of others that have been imported and say what their config is (docs/add_a_network.md)."""
    ours = {network for network, _ in NETWORKS}
    others = [c for c in OccupancyNetwork.__subclasses__() if c not in ours and c.config_class is not None]
    return [*NETWORKS, *((c, c.config_class) for c in others if c.config_class is not None)]


def _config_names() -> str:
    return ", ".join(config_class.__name__ for _, config_class in _networks())


def list_presets() -> tuple[str, ...]:
    """Names that load_model and preset_config take."""
    return tuple(PRESETS)


def preset_config(name: str) -> NetworkConfig:
    """The config of a preset.

    Raises:
        ValueError: there is no preset of that name; the message holds the nearest ones.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(PRESETS)}"
        raise ValueError(f"unknown preset {name!r}: {hint}")
    return PRESETS[name]()


def load_model(
    preset_or_path: str | Path | None = None,
    checkpoint: str | Path | None = None,
    device: str | torch.device | None = None,
) -> OccupancyNetwork:
    """A network in inference mode (``model.train()`` for training).

    ``load_model()`` is the default preset with the trained weights that come with the package.
    ``load_model("fusionocc-tiny")`` has fresh weights, since none come with that preset (SHIPPED_WEIGHTS has the list;
    ``make_network(preset_config(name))`` is fresh in any case), ``load_model("fusionocc-base",
    checkpoint="fusion_occ.pth")`` those of an official file or of one of ours, ``load_model("mine.safetensors")``
    everything from a file of ours.

    Args:
        preset_or_path: A name out of list_presets(), or a file written by save_model; None: DEFAULT_PRESET.
        checkpoint: With a preset: the file to take the weights from. Official layouts: see checkpoints.read_official.
        device: Where to put the network; None: where PyTorch makes new tensors, which is the CPU unless told otherwise.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown preset, or a file that does not fit; the message names what differs.
    """
    if preset_or_path is None:
        preset_or_path = DEFAULT_PRESET
    if isinstance(preset_or_path, Path) or _looks_like_file(preset_or_path):
        if checkpoint is not None:
            raise ValueError(
                f"load_model: {preset_or_path} holds everything itself; checkpoint={checkpoint} goes with a preset"
            )
        model = _from_model_file(Path(preset_or_path))
    else:
        model = _from_preset(preset_or_path, None if checkpoint is None else Path(checkpoint))
    return (model if device is None else model.to(device)).eval()


def shipped_weights(name: str) -> Path:
    """The file of trained weights that comes with the package for a preset.

    Raises:
        ValueError: none comes with this preset.
    """
    if name not in SHIPPED_WEIGHTS:
        raise ValueError(f"no trained weights come with {name!r}; they do with {', '.join(SHIPPED_WEIGHTS)}")
    return Path(__file__).parent / "weights" / SHIPPED_WEIGHTS[name]


def _looks_like_file(name: str) -> bool:
    return name not in PRESETS and (Path(name).is_file() or Path(name).suffix in (".safetensors", ".pth", ".pt"))


def _from_preset(name: str, checkpoint: Path | None) -> OccupancyNetwork:
    config = preset_config(name)
    if checkpoint is None and name in SHIPPED_WEIGHTS:
        return _from_preset(name, shipped_weights(name))
    if checkpoint is None:
        model = make_network(config)
        model.card = ModelCard(preset=name, trained_on=UNTRAINED)
        return model
    if is_model_file(checkpoint):
        model = _from_model_file(checkpoint)
        if differences := config_differences(model.config, config):
            raise ValueError(
                f"{checkpoint} is not a {name}: {'; '.join(differences)} (file and preset); "
                "load it by its path alone to take the network that it describes"
            )
        return model
    with without_fresh_weights():
        model = make_network(config)
    load_official(model, checkpoint, preset=name)
    return model


def _from_model_file(path: Path) -> OccupancyNetwork:
    if not is_model_file(path):
        raise ValueError(
            f"{path} does not say which network it belongs to; if it is an official checkpoint, name the preset: "
            f"load_model('fusionocc-base', checkpoint='{path}')"
        )
    file = read_model(path)
    known = [network.__name__ for network, _ in _networks()]
    if file.network not in known:
        raise ValueError(
            f"{path}: holds a {file.network}, this version knows {', '.join(known)}: update fusionocc, or import the "
            "network first if it is your own"
        )
    with without_fresh_weights():
        model = make_network(decode_network_config(file.config))
    load_strictly(model, file.state, source=str(path), target=f"the {file.network} that it describes")
    model.card = file.card
    return model


def load_official(model: OccupancyNetwork, path: str | Path, *, preset: str = "") -> None:
    """Copy the tensors of an official checkpoint into a network and note the source in its card.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: tensors or grid do not fit; the message names them.
    """
    path = Path(path)
    state, config_text = read_official(path)
    target = preset or "this network"
    model.check_official_config(config_text, str(path))
    load_strictly(model, model.state_from_official(state), source=str(path), target=target)
    model.card = ModelCard(preset=preset, trained_on=f"official checkpoint {path.name}", source=str(path))


def config_differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Fields in which two configs differ, each as "name: value in one, value in the other"."""
    if type(one) is type(other) and is_dataclass(one):
        found = (
            config_differences(getattr(one, f.name), getattr(other, f.name), f"{where}.{f.name}") for f in fields(one)
        )
        return [difference for differences in found for difference in differences]
    return [] if one == other else [f"{where.removeprefix('.')}: {one} and {other}"]
