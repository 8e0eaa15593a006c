"""Gaussians for screens: one sphere each, stretched and turned into its ellipsoid; and read back from there."""

from __future__ import annotations

import numpy as np
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

from fusionocc_core.gaussians import GaussianCloud
from fusionocc_core.grids import LabelSet
from fusionocc_core.structures import Occupancy
from fusionocc_ros.convert import ns_to_stamp
from fusionocc_ros.marker_bytes import markers_to_bytes

FAINTEST = 0.05
"""Opacity that a marker has at least: rviz warns of markers that nobody can see."""


def gaussian_markers(occupancy: Occupancy, frame_id: str, *, most: int, deviations: float) -> list[Marker]:
    """A marker that clears the topic, then a SPHERE for each of the most opaque Gaussians, the most opaque first.

    Markers are named by class, so that rviz can switch classes on and off.

    Args:
        occupancy: with Gaussians.
        frame_id: that of their grid.
        most: markers at most.
        deviations: half an ellipsoid's axes, in standard deviations.

    Raises:
        ValueError: the network has no Gaussians, or a class that its label set does not have.
    """
    if occupancy.gaussians is None:
        raise ValueError(f"{occupancy.model or 'the network'} has no Gaussians; presets gaussian* have")
    cloud, labels = occupancy.gaussians.most_opaque(most), occupancy.label_set
    if len(cloud) and int(cloud.labels_G.max()) >= labels.num:
        raise ValueError(f"Gaussians of class {int(cloud.labels_G.max())}: {labels.name} has {labels.num} classes")
    stamp = ns_to_stamp(occupancy.stamp_ns)
    markers = [Marker(action=Marker.DELETEALL)]
    colors = np.asarray(labels.colors) / 255
    rows = zip(
        cloud.means_G3.tolist(),
        (2 * deviations * cloud.scales_G3).tolist(),
        cloud.rotations_G4.tolist(),
        np.maximum(cloud.opacities_G, FAINTEST).tolist(),
        cloud.labels_G.tolist(),
        strict=True,
    )
    for number, (mean, axes, quaternion, opacity, label) in enumerate(rows):
        marker = Marker(ns=labels.names[label], id=number, type=Marker.SPHERE, action=Marker.ADD)
        pose, (r, g, b) = marker.pose, colors[label].tolist()
        pose.position.x, pose.position.y, pose.position.z = mean
        pose.orientation.w, pose.orientation.x, pose.orientation.y, pose.orientation.z = quaternion
        marker.scale.x, marker.scale.y, marker.scale.z = axes
        marker.color = ColorRGBA(r=r, g=g, b=b, a=opacity)
        markers.append(marker)
    for marker in markers:
        marker.header.stamp, marker.header.frame_id = stamp, frame_id
    return markers


def gaussians_to_markers(occupancy: Occupancy, frame_id: str, *, most: int, deviations: float) -> bytes:
    """A serialised MarkerArray of ``gaussian_markers``."""
    nothing = np.zeros((0, 3))
    markers = gaussian_markers(occupancy, frame_id, most=most, deviations=deviations)
    return markers_to_bytes([(marker, nothing) for marker in markers])


def markers_to_gaussians(message: MarkerArray, label_set: LabelSet, *, deviations: float = 1.0) -> GaussianCloud:
    """What ``gaussian_markers`` made, up to rounding: opacities are FAINTEST at least.

    Args:
        message: of ~/gaussians.
        label_set: of the answer that the markers belong to.
        deviations: with which they were made.

    Raises:
        ValueError: a marker that is no ellipsoid, or of a class that the label set does not have.
    """
    spheres = [marker for marker in message.markers if marker.action == Marker.ADD]
    strange = [m for m in spheres if m.type != Marker.SPHERE or m.ns not in label_set.names]
    if strange:
        raise ValueError(
            f"marker {strange[0].ns!r} of type {strange[0].type}: expected spheres named by classes of {label_set.name}"
        )
    rows = np.array(
        [
            (p.x, p.y, p.z, s.x, s.y, s.z, q.w, q.x, q.y, q.z, marker.color.a)
            for marker in spheres
            for p, s, q in [(marker.pose.position, marker.scale, marker.pose.orientation)]
        ],
        np.float32,
    ).reshape(-1, 11)
    return GaussianCloud(
        means_G3=rows[:, :3],
        scales_G3=rows[:, 3:6] / (2 * deviations),
        rotations_G4=rows[:, 6:10],
        opacities_G=rows[:, 10],
        labels_G=np.array([label_set.names.index(marker.ns) for marker in spheres], np.uint8),
    )
