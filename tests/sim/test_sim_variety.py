"""Streets differ: kinds, weather, layouts, textures, objects; nothing is shared between training and validation."""

import hashlib

import numpy as np
import pytest

from fusionocc_core.simulation.ground import intervals
from fusionocc_core.simulation.paths import Centreline
from fusionocc_core.simulation.plan import KINDS, draw_plan
from fusionocc_core.simulation.randomness import rng_for
from fusionocc_core.simulation.rigs import load_rig
from fusionocc_core.simulation.roadside import Slots, reserve_openings
from fusionocc_core.simulation.street import build_street
from fusionocc_core.simulation.textures import make_textures
from fusionocc_core.simulation.traffic import populate
from fusionocc_core.simulation.visibility import pixel_rays, trace_pixels
from fusionocc_core.simulation.weather import KINDS as WEATHERS
from fusionocc_core.simulation.weather import TURNS, draw_weather

MOVABLE = {
    "movable_object.barrier",
    "vehicle.bicycle",
    "vehicle.bus.rigid",
    "vehicle.car",
    "vehicle.construction",
    "vehicle.motorcycle",
    "movable_object.trafficcone",
    "vehicle.trailer",
    "vehicle.truck",
    "movable_object.debris",
}


def street_things(seed, kind, left_hand=True):
    plan = draw_plan(rng_for(seed, kind), kind=kind, left_hand=left_hand, duration=6.0)
    slots = Slots()
    reserve_openings(plan, slots)
    return plan, populate(plan, slots, rng_for(seed, kind, "traffic"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_each_street_has_every_movable_class_near_the_drive(kind, seed):
    plan, things = street_things(seed, kind, left_hand=seed % 2 == 0)
    times = np.linspace(0, 5, 6)
    ego = plan.line.point(plan.profile(times), plan.lane_offset(plan.ego_lane))
    near = set()
    for thing in things:
        place = np.array([[thing.motion(t).x, thing.motion(t).y] for t in times])
        if np.linalg.norm(place - ego, axis=1).min() < 38:
            near.add(thing.category)
    assert near >= MOVABLE
    assert any(category.startswith("human.pedestrian") for category in near)


@pytest.mark.parametrize("kind", KINDS)
def test_the_ego_meets_nothing(kind):
    """No other thing comes nearer to the ego's rectangle than a hand's width."""
    for seed in range(3):
        plan, things = street_things(seed, kind)
        for t in np.arange(0.0, 6.0, 1.0):
            s = float(plan.profile(t))
            heading = float(plan.line.heading_at(s))
            origin = plan.line.point(s, plan.lane_offset(plan.ego_lane))
            for thing in things:
                pose = thing.motion(t)
                reach = np.hypot(*thing.size[:2]) / 2
                if np.hypot(pose.x - origin[0], pose.y - origin[1]) > reach + 5:
                    continue
                corners = thing.frames[thing.frame_at(t)].placed(pose.x, pose.y, pose.z, pose.yaw).corners
                local = corners.reshape(-1, 3)[:, :2] - origin
                ahead = local @ (np.cos(heading), np.sin(heading))
                aside = local @ (-np.sin(heading), np.cos(heading))
                inside = (ahead > -1.0) & (ahead < 3.6) & (np.abs(aside) < 0.95)
                assert not inside.any(), (seed, t, thing.category)


def test_kinds_take_turns():
    kinds = []
    for index in range(3):
        first = int(rng_for(5, "train", "kind").integers(len(KINDS)))
        kinds.append(KINDS[(first + index) % 3])
    assert set(kinds) == set(KINDS)


@pytest.mark.parametrize("name", WEATHERS)
def test_weather(name):
    first, second = draw_weather(rng_for(0, 1), name), draw_weather(rng_for(0, 2), name)
    assert np.linalg.norm(first.sun) == pytest.approx(1)
    assert first.sun[2] > 0
    assert first.sun != second.sun
    assert np.isfinite(first.sky).all()
    assert first.sky.min() >= 0
    assert (first.fog > 0.01) == (name == "fog")
    assert (first.night == 1) == (name == "dusk")
    assert set(TURNS) == set(WEATHERS)


def test_no_two_texture_sets_share_a_texture():
    sets = [make_textures(rng_for(1, split, 0, "textures")) for split in ("train", "val")]
    blank = 0
    for material in range(len(sets[0].log2_size)):
        pictures = []
        for textures in sets:
            start = textures.offset[material, 0]
            pictures.append(textures.texels[start : start + 4 ** textures.log2_size[material]])
        if len(np.unique(pictures[0])) == 1:
            blank += 1  # plain paint and glass: their colours belong to the objects
            continue
        assert len(pictures[0]) == len(pictures[1])
        assert (pictures[0] != pictures[1]).mean() > 0.3
    assert blank <= 2


@pytest.fixture(scope="module")
def streets(needs_embree):
    return {
        split: build_street(seed=2, split=split, index=0, left_hand=True, duration=3.0) for split in ("train", "val")
    }


def test_training_and_validation_share_no_layout_and_no_object(streets):
    train, val = streets["train"], streets["val"]
    assert train.plan.lane_width != val.plan.lane_width
    assert len(train.ground.corners) != len(val.ground.corners)
    shapes = [
        {hashlib.sha256(t.frames[0].corners.tobytes() + t.frames[0].tint.tobytes()).hexdigest() for t in s.things}
        for s in (train, val)
    ]
    racks = 2  # bicycle racks and hydrants are the only things without a random number, and they are no instances
    assert len(shapes[0] & shapes[1]) == 0
    assert len(shapes[0]) > len(train.things) - racks


def test_every_instance_has_triangles_and_a_sensible_box(streets):
    for street in streets.values():
        for k, thing in enumerate(street.things):
            assert all(0.05 < edge < 14 for edge in thing.size), thing.category
            if not thing.moving:
                assert (street.static_instance == k).sum() == thing.frames[0].num
            low, high = thing.frames[0].corners.min(axis=(0, 1)), thing.frames[0].corners.max(axis=(0, 1))
            assert (np.abs(low[:2] + high[:2]) < 0.6).all()
            assert low[2] > -0.4


def test_walkers_move_their_legs(streets):
    walkers = [t for s in streets.values() for t in s.things if len(t.frames) > 1]
    assert walkers
    thing = walkers[0]
    assert {thing.frame_at(t) for t in np.linspace(0, 2, 50)} == set(range(len(thing.frames)))


def test_pixels_between_traced_ones_are_what_a_ray_would_find(streets):
    street, rig = streets["train"], load_rig("nuscenes-singapore").resized((360, 640))
    snapshot, pose = street.snapshot(1.0), street.drive.poses(1.0)[0]
    for mount in rig.cameras[:3]:
        cam2street = pose @ mount.cam2ego
        direction = pixel_rays(mount) @ cam2street[:3, :3].T.astype(np.float32)
        sparse = trace_pixels(snapshot, mount, cam2street, direction)
        eye = np.broadcast_to(cam2street[:3, 3].astype(np.float32), direction.shape)
        full = snapshot.first_hits(eye, direction)
        raw = [np.where(h.triangle >= 0, snapshot.mesh.raw[h.triangle], 255) for h in (sparse, full)]
        assert (raw[0] != raw[1]).mean() < 0.002
        same = (sparse.triangle == full.triangle) & (full.triangle >= 0)
        assert same.mean() > 0.3
        np.testing.assert_allclose(sparse.distance[same], full.distance[same], rtol=1e-3)
        np.testing.assert_allclose(sparse.b1[same], full.b1[same], atol=2e-2)


def test_centrelines_keep_their_length():
    line = Centreline.from_curvature(-50.0, [(80.0, 0.0), (60.0, 1 / 80), (60.0, 0.0)], heading=0.4)
    s = np.linspace(-49, 149, 400)
    steps = np.linalg.norm(np.diff(line.point(s), axis=0), axis=1)
    np.testing.assert_allclose(steps, np.diff(s), rtol=2e-3)
    np.testing.assert_allclose(line.point(0.0), 0, atol=1e-9)
    back_s, back_d = line.nearest(line.point(np.array([20.0, 70.0]), np.array([3.0, -4.0])))
    np.testing.assert_allclose(back_s, [20, 70], atol=0.1)
    np.testing.assert_allclose(back_d, [3, -4], atol=0.1)


def test_intervals_leave_out_gaps():
    assert intervals(0.0, 10.0, [(2.0, 3.0), (2.5, 5.0)]) == [(0.0, 2.0), (5.0, 10.0)]
    assert intervals(0.0, 10.0, [(-1.0, 11.0)]) == []
    assert intervals(0.0, 10.0, []) == [(0.0, 10.0)]
