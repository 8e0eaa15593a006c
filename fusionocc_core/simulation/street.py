"""One street: its geometry, its things, its weather and textures, and the drive through it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.simulation.ground import build_ground
from fusionocc_core.simulation.mesh import Mesh, join
from fusionocc_core.simulation.paths import EgoDrive, draw_drive
from fusionocc_core.simulation.plan import KINDS, StreetPlan, draw_plan
from fusionocc_core.simulation.randomness import rng_for
from fusionocc_core.simulation.roadside import Slots, build_roadside, reserve_openings
from fusionocc_core.simulation.shading import ShadeTable
from fusionocc_core.simulation.textures import TextureSet, make_textures
from fusionocc_core.simulation.things import Thing
from fusionocc_core.simulation.tracing import Hits, Tracer
from fusionocc_core.simulation.traffic import populate
from fusionocc_core.simulation.weather import TURNS, Weather, draw_weather

NO_INSTANCE = -1


@dataclass(frozen=True, kw_only=True)
class Street:
    """Everything about a scene that does not depend on the sensors. Coordinates: the street frame, metres."""

    plan: StreetPlan
    drive: EgoDrive
    ground: Mesh
    static: Mesh
    """Ground, roadside and resting things."""
    static_instance: NDArray[np.int16]
    """(T,) index into ``things``; NO_INSTANCE for the rest."""
    things: tuple[Thing, ...]
    weather: Weather
    textures: TextureSet
    tracer: Tracer
    """Over ``static``."""
    shade_table: ShadeTable
    """Of ``static``."""
    static_normals: NDArray[np.float32]
    """(T, 3) of ``static``."""

    @property
    def moving(self) -> list[int]:
        """Indices of the things that move."""
        return [k for k, thing in enumerate(self.things) if thing.moving]

    def snapshot(self, t: float) -> Snapshot:
        """The street with every thing where it is at time t."""
        return self.snapshot_at(dict.fromkeys(self.moving, t))

    def snapshot_at(self, times: dict[int, float]) -> Snapshot:
        """The street with each moving thing at a time of its own."""
        parts = [self.things[k].placed_at(t) for k, t in times.items()]
        moving = join(parts)
        counts = [part.num for part in parts]
        instance = np.repeat(np.array(list(times), np.int16), counts) if parts else np.zeros(0, np.int16)
        return Snapshot(street=self, moving=moving, moving_instance=instance)


class Snapshot:
    """A street at one moment: rays can be cast into it. Triangles are numbered static first, then moving."""

    def __init__(self, *, street: Street, moving: Mesh, moving_instance: NDArray[np.int16]) -> None:
        self.street = street
        self.moving, self.moving_instance = moving, moving_instance
        self._tracer = Tracer(moving.corners)
        self.mesh = join([street.static, moving]) if moving.num else street.static
        """Both kinds of triangles."""
        self.instance = np.concatenate([street.static_instance, moving_instance])

    @cached_property
    def moving_balls(self) -> list[tuple[NDArray[np.float64], float]]:
        """Centre (3,) and radius of a ball around each moving thing."""
        balls = []
        for k in np.unique(self.moving_instance):
            corners = self.moving.corners[self.moving_instance == k].reshape(-1, 3).astype(np.float64)
            center = (corners.max(axis=0) + corners.min(axis=0)) / 2
            balls.append((center, float(np.linalg.norm(corners - center, axis=1).max())))
        return balls

    @cached_property
    def mesh_normals(self) -> NDArray[np.float32]:
        """(T, 3) of ``mesh``."""
        return np.concatenate([self.street.static_normals, self.moving.normals()])

    @cached_property
    def shade_table(self) -> ShadeTable:
        """What shading needs of ``mesh``."""
        still = self.street.shade_table
        return still.joined(ShadeTable.of(self.moving, self.street.textures)) if self.moving.num else still

    def first_hits(
        self,
        origins: NDArray[np.float32],
        directions: NDArray[np.float32],
        near_moving: NDArray[np.bool_] | None = None,
    ) -> Hits:
        """The nearest surface along N rays; ``near_moving`` (N,): which of them may meet a moving thing (None: all)."""
        hits = self.street.tracer.first_hits(origins, directions)
        which = np.arange(len(directions)) if near_moving is None else np.flatnonzero(near_moving)
        if self.moving.num == 0 or len(which) == 0:
            return hits
        moved = self._tracer.first_hits(origins[which], directions[which])
        nearer = moved.distance < hits.distance[which]
        at = which[nearer]
        hits.distance[at], hits.triangle[at] = moved.distance[nearer], moved.triangle[nearer] + self.street.static.num
        hits.b1[at], hits.b2[at] = moved.b1[nearer], moved.b2[nearer]
        return hits

    def blocked(
        self, origins: NDArray[np.float32], directions: NDArray[np.float32], reach: float | None = None
    ) -> NDArray[np.bool_]:
        """Whether anything lies along N rays."""
        shut = self.street.tracer.blocked(origins, directions, reach)
        if self.moving.num:
            shut |= self._tracer.blocked(origins, directions, reach)
        return shut


def build_street(*, seed: int, split: str, index: int, left_hand: bool, duration: float) -> Street:
    """The ``index``-th street of a split. Every number is drawn from generators keyed by (seed, split, index, subject).

    Kinds and weathers take turns, so that a few scenes hold all of them; nothing is shared between two streets: each
    draws its own layout, textures and objects.
    """
    first = int(rng_for(seed, split, "kind").integers(len(KINDS)))
    kind = KINDS[(first + index) % len(KINDS)]
    turns = rng_for(seed, split, "weather turns").permutation(TURNS)

    def rng(subject: str) -> np.random.Generator:
        return rng_for(seed, split, index, subject)

    plan = draw_plan(rng("plan"), kind=kind, left_hand=left_hand, duration=duration)
    slots = Slots()
    reserve_openings(plan, slots)
    things = tuple(populate(plan, slots, rng("traffic")))
    roadside = build_roadside(plan, slots, rng("roadside"))
    ground = build_ground(plan, rng("ground"))
    resting = [(k, thing.placed_at(0.0)) for k, thing in enumerate(things) if not thing.moving]
    static = join([ground, roadside, *(mesh for _, mesh in resting)])
    instance = np.full(static.num, NO_INSTANCE, np.int16)
    instance[ground.num + roadside.num :] = np.repeat(
        np.array([k for k, _ in resting], np.int16), [mesh.num for _, mesh in resting]
    )
    textures = make_textures(rng("textures"))
    return Street(
        plan=plan,
        drive=draw_drive(rng("drive"), plan.line, plan.profile, plan.lane_offset(plan.ego_lane)),
        ground=ground,
        static=static,
        static_instance=instance,
        things=things,
        weather=draw_weather(rng("weather"), str(turns[index % len(turns)])),
        textures=textures,
        tracer=Tracer(static.corners),
        shade_table=ShadeTable.of(static, textures),
        static_normals=static.normals(),
    )
