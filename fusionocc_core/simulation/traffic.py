"""Who uses the street: vehicles, riders, pedestrians, a work zone, loose things. All of them are instances."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fusionocc_core.simulation import people, props, vehicles
from fusionocc_core.simulation.mesh import Mesh
from fusionocc_core.simulation.paths import Centreline, Following, Pose, Tailing
from fusionocc_core.simulation.plan import KERB_HEIGHT, StreetPlan
from fusionocc_core.simulation.roadside import Slots, band_name
from fusionocc_core.simulation.things import Thing, make_thing

Maker = Callable[[np.random.Generator], Mesh]
LARGE: tuple[tuple[str, Maker], ...] = (
    ("vehicle.bus.rigid", vehicles.bus),
    ("vehicle.truck", vehicles.truck),
    ("vehicle.trailer", vehicles.trailer),
)
MOVING, STOPPED, PARKED = "vehicle.moving", "vehicle.stopped", "vehicle.parked"
WITH_RIDER, WITHOUT_RIDER = "cycle.with_rider", "cycle.without_rider"


def populate(plan: StreetPlan, slots: Slots, rng: np.random.Generator) -> list[Thing]:
    """Everything that gets a box, in a fixed order; each of the ten movable classes occurs near the drive."""
    crowd = _Crowd(plan, slots, rng)
    crowd.work_zone()
    crowd.large_vehicles()
    crowd.small_vehicles()
    crowd.cycles()
    crowd.pedestrians()
    crowd.loose_things()
    crowd.cross_traffic()
    return crowd.things


class _Crowd:
    """Places things one group after another; ``slots`` says what is still free."""

    def __init__(self, plan: StreetPlan, slots: Slots, rng: np.random.Generator) -> None:
        self.plan, self.slots, self.rng = plan, slots, rng
        self.things: list[Thing] = []
        self.near = (-25.0, plan.travelled + 30.0)
        self.zone_side = 0
        self.lane_speed = {lane: float(rng.uniform(4.5, 10.0)) for lane in range(plan.lanes)}
        self.oncoming_speed = {lane: float(rng.uniform(4.5, 10.0)) for lane in range(plan.lanes)}

    def pose(self, s: float, d: float, *, z: float = 0.0, turn: float = 0.0) -> Pose:
        """A resting pose beside the line."""
        x, y = self.plan.line.point(s, d)
        return Pose(x=float(x), y=float(y), z=z, yaw=float(self.plan.line.heading_at(s)) + turn)

    def heading_turn(self, side: int) -> float:
        """Turn of vehicles that stand on a side and face their traffic's way."""
        return 0.0 if side == self.plan.ego_side else np.pi

    def work_zone(self) -> None:
        """A stretch closed by barriers and cones, with a machine and workers in it."""
        plan, rng = self.plan, self.rng
        side = int(rng.choice([1, -1]))
        if plan.lanes > 1 and not plan.parking and plan.ego_lane == plan.lanes - 1:
            side = -plan.ego_side
        length = float(rng.uniform(16, 26))
        self.zone_side = side
        s = self._zone_place(side, length)
        inner, outer = self._zone_band(side)
        middle = side * (inner + outer) / 2
        tint = [(0.85, 0.3, 0.14), (0.93, 0.9, 0.86)]
        count = int(length / 2.05)
        for k in range(count):
            at = s - length / 2 + 1.0 + 2.05 * k
            mesh = props.barrier(rng, tint[k % 2])
            self.add("movable_object.barrier", mesh, self.pose(at, side * (inner + 0.2), z=self._zone_z(inner)))
        for k in range(int(rng.integers(6, 11))):
            at, d = s - length / 2 - 1.0 - 1.6 * k, inner + 0.2 + 0.22 * k
            if d < outer:
                self.add("movable_object.trafficcone", props.cone(rng), self.pose(at, side * d, z=self._zone_z(d)))
        z = self._zone_z((inner + outer) / 2)
        turn = self.heading_turn(side) + float(rng.normal(0, 0.08))
        self.add(
            "vehicle.construction",
            vehicles.construction_vehicle(rng),
            self.pose(s, middle + side * 0.4, z=z, turn=turn),
        )
        for k in range(int(rng.integers(2, 4))):
            look = people.draw_person(rng, worker=True)
            at = s + float(rng.choice([-1, 1])) * float(rng.uniform(4.8, length / 2 - 1.0))
            pose = self.pose(at, middle + float(rng.uniform(-0.5, 0.5)), z=z, turn=float(rng.uniform(0, 6.3)))
            mesh = people.person(look, rng, None)
            self.add("human.pedestrian.construction_worker", mesh, pose, "pedestrian.standing")
            if k == 0:
                self.add("movable_object.debris", props.debris(rng), self.pose(at + 1.6, middle, z=z))

    def _zone_place(self, side: int, length: float) -> float:
        """Its middle; the stretch is taken in every band that it may touch."""
        bands = [band_name(band, side) for band in ("parking", "kerb", "walk")]
        for _ in range(60):
            s = float(self.rng.uniform(-10.0, self.plan.travelled + 15.0))
            low, high = s - length / 2 - 14.0, s + length / 2 + 2.0
            if all(self.slots.is_free(band, low, high) for band in bands):
                break
        for band in bands:
            self.slots.block(band, low, high)
        self.slots.block(f"lane{side:+d}", low - 8.0, high + 8.0)
        return s

    def _zone_band(self, side: int) -> tuple[float, float]:
        """|d| of its inner and outer edge: the parking lane or the outermost lane, else the roadside."""
        plan = self.plan
        if plan.parking:
            return plan.half_width - plan.parking, plan.half_width + 1.2
        own = side == plan.ego_side and plan.ego_lane == plan.lanes - 1
        if plan.lanes > 1 and not own:
            return plan.half_width - plan.lane_width + 0.1, plan.half_width
        return plan.half_width + 0.4, plan.half_width + 3.6

    def _zone_z(self, d: float) -> float:
        return KERB_HEIGHT if d > self.plan.half_width else 0.0

    def add(
        self,
        category: str,
        frames: Mesh | tuple[Mesh, ...],
        motion: object,
        attribute: str = "",
        speed: float = 0.0,
    ) -> None:
        """Append an instance."""
        self.things.append(make_thing(category, frames, motion, attribute=attribute, speed=speed))  # type: ignore[arg-type]

    def large_vehicles(self) -> None:
        """At least one bus, truck and trailer, parked or driving."""
        for category, make in LARGE:
            for k in range(2 if self.rng.random() < 0.5 else 1):
                mesh = make(self.rng)
                park_first = (k == 0 and category == "vehicle.trailer") or self.rng.random() < 0.55
                placed = park_first and self._park(category, mesh)
                if (
                    not placed
                    and not self._drive(category, mesh, near=k == 0)
                    and k == 0
                    and not self._park(category, mesh)
                ):
                    self._in_yard(category, mesh)

    def _park(self, category: str, mesh: Mesh, s_range: tuple[float, float] | None = None) -> bool:
        """Beside the kerb, in the parking lane if there is one, else half on the sidewalk's edge."""
        length = float(np.ptp(mesh.corners[..., 0])) + 1.4
        width = float(np.ptp(mesh.corners[..., 1]))
        for side in self.rng.permutation([1, -1]):
            s = self.slots.claim(self.rng, band_name("parking", int(side)), length, s_range or self.near)
            if s is None:
                continue
            if self.plan.parking:
                d, z = self.plan.half_width - max(width / 2 + 0.15, self.plan.parking / 2), 0.0
            else:  # no lane to park in: off the road, beyond the kerb
                d, z = self.plan.half_width + width / 2 + 0.25, KERB_HEIGHT
                for band in ("walk", "kerb", "yard"):
                    self.slots.block(band_name(band, int(side)), s - length / 2, s + length / 2)
            turn = self.heading_turn(int(side)) + float(self.rng.normal(0, 0.015))
            self.add(category, mesh, self.pose(s, int(side) * d, z=z, turn=turn), PARKED)
            return True
        return False

    def _in_yard(self, category: str, mesh: Mesh, attribute: str = PARKED) -> None:
        """On the ground in front of the houses: the last resort for a class that must occur."""
        side = int(self.rng.choice([1, -1]))
        length, width = (float(np.ptp(mesh.corners[..., axis])) for axis in (0, 1))
        band, wider = band_name("yard", side), (-60.0, self.near[1] + 40.0)
        s = self.slots.claim(self.rng, band, length + 1.0, self.near)
        if s is None:
            s = self.slots.claim(self.rng, band, length + 1.0, wider)
        at = self.near[0] if s is None else s
        d = max(self.plan.yard_start(side), self.plan.sidewalk_band(side)[1]) + width / 2 + 0.3
        self.slots.block(band_name("front", side), at - length / 2 - 1, at + length / 2 + 1)
        self.add(category, mesh, self.pose(at, side * d, z=KERB_HEIGHT), attribute)

    def _lanes(self) -> list[tuple[str, int]]:
        """Lanes with free flow: (direction, lane)."""
        plan = self.plan
        lanes = []
        for direction, side in (("with", plan.ego_side), ("against", -plan.ego_side)):
            for lane in range(plan.lanes):
                closed = self.zone_side == side and lane == plan.lanes - 1 and plan.lanes > 1 and not plan.parking
                own = direction == "with" and lane == plan.ego_lane
                if not closed and not own:
                    lanes.append((direction, lane))
        return lanes

    def _drive(self, category: str, mesh: Mesh, *, near: bool = False) -> bool:
        """In a lane, at the lane's speed; or in the ego's own lane, keeping its distance. ``near``: within sight."""
        plan, rng = self.plan, self.rng
        length = float(np.ptp(mesh.corners[..., 0])) + 6.0
        lanes = self._lanes()
        if rng.random() < 0.2 or not lanes:
            lead = (
                self.slots.claim(rng, "own lane", length, (18.0, 32.0 if near else 75.0))
                if rng.random() < 0.7
                else None
            )
            lead = self.slots.claim(rng, "own lane", length, (-40.0, -16.0)) if lead is None else lead
            if lead is None:
                return False
            offset = plan.lane_offset(plan.ego_lane)
            self.add(category, mesh, Tailing(line=plan.line, lead=lead, offset=offset, profile=plan.profile), MOVING)
            return True
        direction, lane = lanes[int(rng.integers(len(lanes)))]
        forward = direction == "with"
        speed = self.lane_speed[lane] if forward else -self.oncoming_speed[lane]
        drift = speed * plan.duration
        middle = (-15.0, plan.travelled + 20.0) if near else (plan.begin + 40, plan.end - 40)
        start = self.slots.claim(rng, f"{direction}{lane}", length, (middle[0] - drift / 2, middle[1] - drift / 2))
        if (
            start is None
            or not plan.line.s[0] + 20 < min(start, start + drift) < max(start, start + drift) < plan.line.s[-1] - 20
        ):
            return False
        offset = plan.lane_offset(lane, oncoming=not forward)
        self.add(category, mesh, Following(line=plan.line, start=start, offset=offset, speed=speed), MOVING)
        return True

    def small_vehicles(self) -> None:
        """Parked and driving cars."""
        parked = int(self.rng.integers(8, 20)) if self.plan.parking else int(self.rng.integers(2, 6))
        span = (self.plan.begin + 30, self.plan.end - 30)
        for _ in range(parked):
            self._park("vehicle.car", vehicles.car(self.rng), span)
        for _ in range(int(self.rng.integers(6, 14))):
            self._drive("vehicle.car", vehicles.car(self.rng))

    def cycles(self) -> None:
        """Motorcycles and bicycles: standing at the kerb, and ridden at the edge of the road."""
        plan, rng = self.plan, self.rng
        for category, make in (("vehicle.motorcycle", people.motorcycle), ("vehicle.bicycle", people.bicycle)):
            placed = 0
            for _ in range(int(rng.integers(3, 7))):
                side = int(rng.choice([1, -1]))
                s = self.slots.claim(rng, band_name("kerb", side), 1.0, self.near, tries=60)
                if s is None:
                    continue
                d = side * (plan.half_width + 1.05)
                pose = self.pose(s, d, z=KERB_HEIGHT, turn=np.pi / 2 + float(rng.normal(0, 0.2)))
                self.add(category, make(rng, rider=False), pose, WITHOUT_RIDER)
                placed += 1
            for _ in range(int(rng.integers(1, 4)) + (2 if placed == 0 else 0)):
                motion = self._ride()
                if motion is not None:
                    self.add(category, make(rng, rider=True), motion, WITH_RIDER)
                    placed += 1
            if placed == 0:
                self._in_yard(category, make(rng, rider=False), WITHOUT_RIDER)

    def _ride(self) -> Following | None:
        """At the edge of the road, or beside it where the edge belongs to the ego or to a work zone; None: no room."""
        plan, rng = self.plan, self.rng
        for _ in range(6):
            forward = rng.random() < 0.5
            side = plan.ego_side if forward else -plan.ego_side
            speed = float(rng.uniform(3.0, 5.5)) * (1 if forward else -1)
            own_lane = forward and plan.ego_lane == plan.lanes - 1
            if side != self.zone_side and not own_lane:
                start = self.slots.claim(rng, band_name("edge", side), 5.0, (-30.0, plan.travelled + 50.0))
                if start is not None:
                    offset = side * (plan.half_width - plan.parking - 0.45)
                    return Following(line=plan.line, start=start, offset=offset, speed=speed)
            start, speed = float(rng.uniform(0, plan.travelled + 20)), 0.6 * speed
            end = start + speed * plan.duration
            if self._walk_is_free(side, min(start, end) - 1.5, max(start, end) + 1.5):
                offset = side * (plan.half_width + 2.0)
                return Following(line=plan.line, start=start, offset=offset, speed=speed, z=KERB_HEIGHT)
        return None

    def pedestrians(self) -> None:
        """Walking and standing on the sidewalks, and crossing at the zebra."""
        plan, rng = self.plan, self.rng
        for _ in range(int(rng.integers(12, 26))):
            side = int(rng.choice([1, -1]))
            low, high = plan.sidewalk_band(side)
            child = bool(rng.random() < 0.15)
            look = people.draw_person(rng, child=child)
            category = "human.pedestrian.child" if child else "human.pedestrian.adult"
            d = side * float(rng.uniform(low + 0.45 * (high - low), high - 0.3))
            s = self.slots.claim(rng, band_name("walk", side), 0.9, self.near)
            if s is None:
                continue
            if rng.random() < 0.7:
                speed = float(rng.uniform(0.9, 1.6) * rng.choice([-1, 1]))
                end = s + speed * plan.duration
                if not self._walk_is_free(side, min(s, end), max(s, end)):
                    continue
                motion = Following(line=plan.line, start=s, offset=d, speed=speed, z=KERB_HEIGHT)
                self.add(category, people.walker(rng, look), motion, "pedestrian.moving", abs(speed))
            else:
                pose = self.pose(s, d, z=KERB_HEIGHT, turn=float(rng.uniform(0, 6.3)))
                self.add(category, people.person(look, rng, None), pose, "pedestrian.standing")
        if plan.zebra is not None:
            self._zebra_walkers(plan.zebra)

    def _walk_is_free(self, side: int, low: float, high: float) -> bool:
        """Whether a walk along the sidewalk stays clear of junctions and work zones."""
        crossing = self.plan.crossing
        if crossing is not None and low < crossing.s + crossing.reach + 6 and high > crossing.s - crossing.reach - 6:
            return False
        zones = [(a, b) for a, b in self.slots.taken.get(band_name("walk", side), ()) if b - a > 2.0]
        return all(high < a or low > b for a, b in zones)

    def _zebra_walkers(self, zebra: float) -> None:
        """People on the zebra, when the ego is not."""
        plan, rng = self.plan, self.rng
        x, y = plan.line.point(zebra)
        across = Centreline.straight(float(x), float(y), float(plan.line.heading_at(zebra)) + np.pi / 2, 60.0)
        times = np.arange(0, plan.duration, 0.1)
        near = times[np.abs(plan.profile(times) - zebra) < 14.0]
        busy = (float(near.min()), float(near.max())) if len(near) else (1e9, 1e9)
        for _ in range(int(rng.integers(1, 4))):
            speed = float(rng.uniform(1.1, 1.5) * rng.choice([-1, 1]))
            start = -float(np.sign(speed)) * (plan.half_width + float(rng.uniform(0, 3)))
            crossing_time = (2 * plan.half_width + 3) / abs(speed)
            if busy[0] - 1.0 > crossing_time or len(near) == 0:
                motion = Following(line=across, start=start, offset=float(rng.uniform(-1.2, 1.2)), speed=speed)
                look = people.draw_person(rng)
                self.add("human.pedestrian.adult", people.walker(rng, look), motion, "pedestrian.moving", abs(speed))

    def loose_things(self) -> None:
        """Bins, prams, debris and cones on the sidewalks."""
        rng = self.rng
        choices: Sequence[tuple[str, Maker, int]] = (
            ("movable_object.pushable_pullable", props.litter_bin, int(rng.integers(5, 11))),
            ("human.pedestrian.stroller", props.stroller, int(rng.integers(0, 3))),
            ("movable_object.trafficcone", props.cone, int(rng.integers(4, 9))),
            ("movable_object.debris", props.debris, int(rng.integers(0, 2))),
        )
        for category, make, count in choices:
            for _ in range(count):
                side = int(rng.choice([1, -1]))
                s = self.slots.claim(rng, band_name("kerb", side), 1.3, self.near)
                if s is not None:
                    d = side * (self.plan.half_width + 0.6)
                    pose = self.pose(s, d, z=KERB_HEIGHT, turn=float(rng.normal(0, 0.3)) + self.heading_turn(side))
                    self.add(category, make(rng), pose)

    def cross_traffic(self) -> None:
        """Vehicles that wait on the other road, and drive on it farther away."""
        crossing = self.plan.crossing
        if crossing is None:
            return
        rng = self.rng
        for way in (1, -1):
            first = self.plan.half_width + crossing.corner + 6.0
            for lane in range(crossing.lanes):
                d = self.plan.ego_side * way * (lane + 0.5) * crossing.half_width / crossing.lanes
                s = first
                for _ in range(int(rng.integers(0, 4))):
                    truck = rng.random() < 0.15
                    mesh = vehicles.truck(rng) if truck else vehicles.car(rng)
                    length = float(np.ptp(mesh.corners[..., 0]))
                    x, y = crossing.line.point(-way * (s + length / 2), d)
                    yaw = float(crossing.line.heading_at(0.0)) + (0.0 if way > 0 else np.pi)
                    self.add(
                        "vehicle.truck" if truck else "vehicle.car",
                        mesh,
                        Pose(x=float(x), y=float(y), z=0.0, yaw=yaw),
                        STOPPED,
                    )
                    s += length + float(rng.uniform(1.5, 4.0))
