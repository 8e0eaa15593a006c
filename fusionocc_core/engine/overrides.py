"""``--set key=value``: change one field deep inside a frozen config."""

from __future__ import annotations

import ast
import difflib
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Config = TypeVar("Config")


def override(config: Config, assignments: Sequence[str]) -> Config:
    """The config with ``key=value`` texts applied; keys are dotted, as in ``train.optimizer.lr=1e-4``. The last wins.

    Values are read by the field's type: numbers, true/false, none where the field allows it, text as it stands, tuples
    as ``a,b``. A group that may be none (``train.ema``) can be switched off with none, not made from text.

    Raises:
        ValueError: no such key (with the nearest ones), a value of another type, or one that the config refuses.
    """
    changes: dict[str, str] = {}
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator or not key.strip():
            raise ValueError(f"--set {assignment}: expected key=value, for example --set train.optimizer.lr=1e-4")
        changes[key.strip()] = text.strip()
    for key in changes:
        _check_key(config, key)
    changed: Config = _rebuild(config, changes, "")
    return changed


def keys_of(config: Any, prefix: str = "") -> list[str]:
    """Every dotted key that ``override`` takes for this config."""
    keys = []
    for f in fields(config):
        if not f.init:
            continue
        value = getattr(config, f.name)
        keys.append(prefix + f.name)
        if is_dataclass(value):
            keys.extend(keys_of(value, f"{prefix}{f.name}."))
    return keys


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for a mistyped name: the nearest known ones, or all of them."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    tail = word.rpartition(".")[2]
    near += [name for name in known if name.rpartition(".")[2] == tail and name not in near][:3]
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"


def _check_key(config: Any, key: str) -> None:
    group = config
    for part in key.split("."):
        if group is None:
            raise ValueError(f"--set {key}: a part of it is none in this recipe")
        if not is_dataclass(group) or part not in {f.name for f in fields(group)}:
            raise ValueError(f"--set {key}: no such key; {nearest(key, keys_of(config))}")
        group = getattr(group, part)


def _rebuild(config: Any, changes: Mapping[str, str], prefix: str) -> Any:
    """The group with all changes at once: fields that must fit together may be changed together."""
    kinds, values = get_type_hints(type(config)), {}
    for name in {key[len(prefix) :].partition(".")[0] for key in changes if key.startswith(prefix)}:
        key = prefix + name
        deeper = any(other.startswith(f"{key}.") for other in changes)
        if deeper and key in changes:
            raise ValueError(f"--set {key}: given together with a part of it")
        values[name] = (
            _rebuild(getattr(config, name), changes, f"{key}.") if deeper else _parse(kinds[name], changes[key], key)
        )
    changed: Any = replace(config, **values)
    return changed


def _parse(kind: Any, text: str, key: str) -> Any:
    if get_origin(kind) in (Union, types.UnionType):
        choices = get_args(kind)
        if types.NoneType in choices and text.lower() == "none":
            return None
        kind = next(choice for choice in choices if choice is not types.NoneType)
    if is_dataclass(kind):
        inner = ", ".join(f.name for f in fields(kind))
        raise ValueError(f"--set {key}={text}: a group of fields; set one of {key}.: {inner}")
    if kind is str:
        return text
    if kind is bool:
        return _parse_bool(text, key)
    literal = _literal(f"({text},)" if get_origin(kind) is tuple and not text.startswith("(") else text)
    if kind is int and type(literal) is int:
        return literal
    if kind is float and type(literal) in (int, float):
        return float(literal)
    if get_origin(kind) is tuple and isinstance(literal, tuple):
        return _parse_tuple(kind, literal, key)
    raise ValueError(f"--set {key}={text}: expected {_describe(kind)}")


def _parse_tuple(kind: Any, values: tuple[Any, ...], key: str) -> tuple[Any, ...]:
    items = get_args(kind)
    kinds = [items[0]] * len(values) if items[-1] is Ellipsis else list(items)
    if len(kinds) != len(values):
        raise ValueError(f"--set {key}={values}: expected {_describe(kind)}")
    return tuple(_parse(item, str(value), key) for item, value in zip(kinds, values, strict=True))


def _parse_bool(text: str, key: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"--set {key}={text}: expected true or false")
    return text.lower() == "true"


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None


def _describe(kind: Any) -> str:
    if get_origin(kind) is tuple:
        items = get_args(kind)
        if items[-1] is Ellipsis:
            return f"numbers separated by commas ({_describe(items[0])})"
        return f"{len(items)} values separated by commas"
    return {int: "a whole number", float: "a number"}.get(kind, getattr(kind, "__name__", str(kind)))
