"""What the logs of a fleet are cut into: units of consecutive keyframes of one scene, which workers take one by one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from urllib.parse import quote

from fusionocc_core.data.nuscenes import NuScenesFrames

KEYFRAMES_A_UNIT = 20
"""Long enough that claiming costs nothing beside predicting, short enough that workers end at about the same time."""

LONGEST_NAME = 200
"""Bytes of a unit's name: it is the name of files, for which most file systems allow 255."""


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set, and the folder of its results."""

    name: str
    """Folder under the output folder; "" where there is one data set only: its results lie in the output folder."""
    frames: NuScenesFrames
    """With the history that the network wants: it is read from disk, so that a unit may begin within a scene."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Consecutive keyframes of one scene; indices as in ``frames[i]``."""

    name: str
    """The same in every run that cuts the same logs in the same way; fit for the name of a file."""
    data: int
    """Which data set."""
    first: int
    stop: int
    """One behind the last."""

    def __len__(self) -> int:
        return self.stop - self.first


def cut(data: Sequence[DataSet], keyframes: int = KEYFRAMES_A_UNIT) -> tuple[Unit, ...]:
    """All keyframes of some data sets as units of at most ``keyframes`` each.

    Raises:
        ValueError: ``keyframes`` is less than one.
    """
    if keyframes < 1:
        raise ValueError(f"--chunk {keyframes}: a unit has at least one keyframe")
    return tuple(
        Unit(name=_name(one.name, scene, first, stop), data=number, first=begin + first, stop=begin + stop)
        for number, one in enumerate(data)
        for scene, begin, end in _scenes(one.frames)
        for first in range(0, end - begin, keyframes)
        for stop in [min(first + keyframes, end - begin)]
    )


def _scenes(frames: NuScenesFrames) -> Iterator[tuple[str, int, int]]:
    """Name, first keyframe and end of each scene."""
    for scene, group in groupby(range(len(frames)), key=lambda index: frames.keyframe(index).scene):
        indices = list(group)
        yield scene, indices[0], indices[-1] + 1


def _name(data: str, scene: str, first: int, stop: int) -> str:
    name = f"{quote(data, safe='')}@{quote(scene, safe='')}@{first}-{stop}"
    if len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return f"{name[: LONGEST_NAME - 17]}@{digest}"


def named_roots(given: Sequence[str]) -> dict[str, Path]:
    """Data sets as the command line gives them: ROOT, or NAME=ROOT where two folders have the same name.

    Returns:
        Name to folder; one alone that was not named is called "".

    Raises:
        ValueError: two of the same name, or a name that is no name of a folder.
    """
    pairs = [_named(text) for text in given]
    if len(pairs) == 1 and not pairs[0][0]:
        return {"": pairs[0][1]}
    roots: dict[str, Path] = {}
    for name, root in pairs:
        name = name or root.resolve().name
        if name in roots:
            raise ValueError(
                f"--data: {roots[name]} and {root} would both be called {name!r}; name them: --data NAME={root}"
            )
        if not name or name.startswith(".") or "/" in name:
            raise ValueError(f"--data: {name!r} does not do as a name for {root}: it becomes a folder under --out")
        roots[name] = root
    return roots


def _named(text: str) -> tuple[str, Path]:
    name, equals, root = text.partition("=")
    return (name, Path(root)) if equals and not Path(text).exists() else ("", Path(text))
