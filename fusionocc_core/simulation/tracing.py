"""Rays against triangles: a thin layer over embree (the ``embreex`` wheel).

embreex is used directly: its ``EmbreeScene.run`` returns hit, barycentric coordinates and normal in one pass, which
trimesh's wrapper computes again by hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FAR = np.float32(1e6)
"""Distance of rays that hit nothing, metres."""


@dataclass(frozen=True, kw_only=True)
class Hits:
    """What N rays met."""

    distance: NDArray[np.float32]
    """(N,) along the (unit) direction, metres; FAR for nothing."""
    triangle: NDArray[np.int32]
    """(N,) index into the mesh; -1 for nothing."""
    b1: NDArray[np.float32]
    """(N,) weight of the triangle's second corner."""
    b2: NDArray[np.float32]
    """(N,) weight of the third."""


class Tracer:
    """An acceleration structure over corners (T, 3, 3) float32."""

    def __init__(self, corners: NDArray[np.float32]) -> None:
        scene_class, mesh_class = _embree()
        self.num = len(corners)
        self._scene: Any = scene_class()
        if self.num:
            mesh_class(self._scene, np.ascontiguousarray(corners, np.float32))

    def first_hits(self, origins: NDArray[np.float32], directions: NDArray[np.float32]) -> Hits:
        """The nearest triangle along each of N rays (N, 3)."""
        count = len(origins)
        if self.num == 0 or count == 0:
            nothing = np.zeros(count, np.float32)
            return Hits(distance=nothing + FAR, triangle=np.full(count, -1, np.int32), b1=nothing, b2=nothing)
        out = self._scene.run(_contiguous(origins), _contiguous(directions), output=1)
        missed = out["primID"] < 0
        distance = out["tfar"]
        distance[missed] = FAR
        return Hits(distance=distance, triangle=out["primID"], b1=out["u"], b2=out["v"])

    def blocked(
        self, origins: NDArray[np.float32], directions: NDArray[np.float32], reach: float | None = None
    ) -> NDArray[np.bool_]:
        """Whether anything lies along each ray, within ``reach`` metres if given."""
        count = len(origins)
        if self.num == 0 or count == 0:
            return np.zeros(count, bool)
        reaches = None if reach is None else np.full(count, reach, np.float32)
        out = self._scene.run(_contiguous(origins), _contiguous(directions), dists=reaches, query="OCCLUDED")
        return np.asarray(out) >= 0


def _contiguous(array: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.ascontiguousarray(array, np.float32)


def require_embree() -> None:
    """Raise ModuleNotFoundError with the install line where embreex is missing."""
    _embree()


def _embree() -> tuple[Any, Any]:
    """The two classes of embreex that are used."""
    try:
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the simulated street needs embreex: pip install 'fusionocc_ros[sim]' (or: pip install embreex==4.4.0)"
        ) from error
    return EmbreeScene, TriangleMesh
