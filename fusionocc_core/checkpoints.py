"""Files of weights: ours, with everything in them, and those of official repositories.

Ours is a safetensors file whose metadata holds the network's class, its config, and its card as JSON. Files of official
repositories are read without running any code that they might hold; their tensor names are translated beside each
network (``models/<network>_official.py``).
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import types
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Config = TypeVar("Config")

FORMAT = "fusionocc-1"
"""Value of the metadata key "format" in our files; it changes when older readers could no longer read them."""

NAMES_SHOWN = 20
"""Tensors named in an error before the rest is only counted."""


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Where a network's weights come from."""

    preset: str
    """The preset, or "" for a config made by hand."""
    trained_on: str
    """What the weights have seen; structures.UNTRAINED for fresh ones."""
    source: str = ""
    """The file that they were read from; "" for fresh ones."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Name to value, as measured when the file was written."""


class SavableModel(Protocol):
    """What save_model needs of a network."""

    config: Any
    card: ModelCard

    def state_dict(self) -> dict[str, Any]:
        """Names to tensors."""


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A file of ours, read."""

    network: str
    """Class name of the network."""
    config: Mapping[str, Any]
    """As ``encode_config`` wrote it."""
    card: ModelCard
    state: dict[str, Tensor]


def save_model(model: SavableModel, path: str | Path, *, card: ModelCard | None = None) -> None:
    """Write a network with everything that load_model needs. The file appears whole or not at all.

    Args:
        model: A network, on any device.
        path: Where to write; by habit ending in .safetensors.
        card: What to say about the weights; the network's own card by default.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    card = card or model.card
    metadata = {
        "format": FORMAT,
        "network": type(model).__name__,
        "config": json.dumps(encode_config(model.config)),
        "card": json.dumps({**asdict(card), "source": ""}),
    }
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.touch()
        usual_mode = partial.stat().st_mode  # safetensors would leave a file that only its owner may read
        save_file(state, partial, metadata=metadata)
        partial.chmod(usual_mode)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise OSError(f"{path}: cannot be written: {reason}; choose a folder that exists and is writable") from error
    finally:
        with contextlib.suppress(OSError):  # nothing could be written there: the error above says so
            partial.unlink(missing_ok=True)


def is_model_file(path: Path) -> bool:
    """Whether a file is one of ours (False for any other safetensors file and for PyTorch's own format).

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with path.open("rb") as file:
        is_safetensors = file.read(9)[8:] == b"{"  # 8 bytes of header length, then JSON
    return is_safetensors and "format" in _read_safetensors(path, tensors=False)[0]


def read_model(path: Path) -> ModelFile:
    """Read a file of ours.

    Raises:
        ValueError: the file was written by another program or by a newer version of this one.
    """
    metadata, state = _read_safetensors(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path}: format {metadata.get('format')!r}, this version reads {FORMAT!r}: update fusionocc")
    card = ModelCard(**{**json.loads(metadata["card"]), "source": str(path)})
    return ModelFile(network=metadata["network"], config=json.loads(metadata["config"]), card=card, state=state)


def read_official(path: Path) -> tuple[dict[str, Tensor], str]:
    """Tensors of an official checkpoint, under its own names, and the config text that came with them ("" if none).

    Takes ``{"meta", "state_dict", ...}``, EMA files ``{"epoch", "state_dict", "updates"}``, bare state dicts, each with
    or without "module." before the names; PyTorch's format or safetensors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, holds something else, or holds Python objects that would have to run code.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    content: Any = _read_safetensors(path)[1] if path.suffix == ".safetensors" else _read_pickle(path)
    meta = content.get("meta") if isinstance(content, Mapping) else None
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        found = sorted(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"{path}: expected a state dict, or one under the key 'state_dict'; found {found}")
    config = meta.get("config") if isinstance(meta, Mapping) else None
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}, config or ""


def _read_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(4)
    if not start.startswith((b"PK", b"\x80")):  # a zip archive, or the bare pickle of PyTorch before 1.6
        raise ValueError(f"{path}: damaged, or not a file of weights (it begins with {start!r})")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: not loaded, because it is damaged or holds Python objects that would have to run code "
            f"({_first_line(error)}). If you trust its source, write its tensors alone to a new file and load that: "
            "torch.save(torch.load(file, weights_only=False)['state_dict'], new_file)"
        ) from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{path}: damaged or truncated ({_first_line(error)})") from error


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _read_safetensors(path: Path, *, tensors: bool = True) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            return metadata, {name: file.get_tensor(name) for name in file.keys()} if tensors else {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged or truncated ({error})") from error


_wants_fresh_weights = ContextVar("wants_fresh_weights", default=True)


def wants_fresh_weights() -> bool:
    """Whether a network that is made now shall draw its weights; a constructor may ask before it does much of it."""
    return _wants_fresh_weights.get()


@contextlib.contextmanager
def without_fresh_weights() -> Iterator[None]:
    """Inside the block, networks are made whose weights hold anything: for those that are read right afterwards.

    Drawing random numbers for a hundred million weights takes several times as long as reading them. What is left out
    are the functions of torch.nn.init and writing into a Parameter in place; buffers and whatever else a constructor
    computes come about as always. ``load_strictly`` then sees that every weight is overwritten.
    """
    before = _wants_fresh_weights.set(False)
    try:
        with _LeaveParameters():
            yield
    finally:
        _wants_fresh_weights.reset(before)


class _LeaveParameters(TorchFunctionMode):
    """Does not give Parameters their first values."""

    _filling = frozenset({"uniform_", "normal_", "fill_", "zero_", "erfinv_", "mul_", "add_", "clamp_"})

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        fills = getattr(func, "__name__", "") in self._filling or getattr(func, "__module__", "") == "torch.nn.init"
        target = args[0] if args else (kwargs or {}).get("tensor")
        if fills and isinstance(target, nn.Parameter):
            return target
        return func(*args, **(kwargs or {}))


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], *, source: str, target: str) -> None:
    """Copy tensors into a module; every name and every shape must fit.

    Counters of batch norms (``num_batches_tracked``) may be missing: nothing that we compute depends on them.

    Args:
        module: The network.
        state: Names to tensors.
        source: What the tensors come from, for messages.
        target: What the module is, for messages.

    Raises:
        ValueError: naming the missing and unexpected tensors and those whose shapes differ (the first 20 of each).
    """
    own = module.state_dict()
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    different = [
        f"{name} (file {tuple(state[name].shape)}, network {tuple(own[name].shape)})"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    problems = [
        _name_some(kind, names)
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", different))
        if names
    ]
    if problems:
        raise ValueError(
            f"{source} does not fit {target}: {'; '.join(problems)}. "
            "Is it the checkpoint of another network, preset or grid?"
        )
    module.load_state_dict({**own, **state})


def _name_some(kind: str, names: list[str]) -> str:
    rest = f", and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return f"{len(names)} {kind}: {', '.join(names[:NAMES_SHOWN])}{rest}"


def encode_config(config: Any) -> Any:
    """A config (frozen dataclasses, tuples, numbers, strings, None) as what JSON can hold."""
    if is_dataclass(config) and not isinstance(config, type):
        encoded = {f.name: encode_config(getattr(config, f.name)) for f in fields(config)}
        return {"class": type(config).__name__, **encoded}
    if isinstance(config, tuple):
        return [encode_config(item) for item in config]
    if config is None or isinstance(config, str | int | float):
        return config
    raise ValueError(f"encode_config: {config!r} is a {type(config).__name__}; a config holds only plain values")


def decode_config(kind: type[Config], encoded: Any) -> Config:
    """The config that ``encode_config`` was given. ``kind`` is its class.

    Raises:
        ValueError: a field that this version does not know or does not find, or another class.
    """
    decoded: Config = _decode(kind, encoded, kind.__name__)
    return decoded


def _decode(kind: Any, encoded: Any, where: str) -> Any:
    if get_origin(kind) in (Union, types.UnionType):
        if encoded is None:
            return None
        named = encoded.get("class") if isinstance(encoded, dict) else None
        choices = [choice for choice in get_args(kind) if choice is not types.NoneType]
        chosen = [choice for choice in choices if getattr(choice, "__name__", "") == named] if named else choices[:1]
        if not chosen:
            raise ValueError(f"{where}: {named!r} is none of {[choice.__name__ for choice in choices]}")
        return _decode(chosen[0], encoded, where)
    if is_dataclass(kind):
        return _decode_dataclass(kind, encoded, where)
    if get_origin(kind) is tuple:
        items = get_args(kind)
        repeated: Iterable[Any] = [items[0]] * len(encoded) if items[-1] is Ellipsis else items
        return tuple(_decode(item, value, where) for item, value in zip(repeated, encoded, strict=True))
    return encoded


def _decode_dataclass(kind: Any, encoded: Any, where: str) -> Any:
    values = {name: value for name, value in encoded.items() if name != "class"}
    known = {f.name for f in fields(kind)}
    if encoded.get("class") != kind.__name__ or not set(values) <= known:
        unknown = sorted(set(values) - known)
        raise ValueError(
            f"{where}: expected a {kind.__name__} with fields {sorted(known)}, got a {encoded.get('class')} with the "
            f"unknown fields {unknown}: the file was written by another version of fusionocc"
        )
    hints = get_type_hints(kind)
    return kind(**{name: _decode(hints[name], value, f"{where}.{name}") for name, value in values.items()})
