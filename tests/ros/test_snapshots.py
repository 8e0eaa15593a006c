"""Snapshots in a folder: what they hold, and names and folders that are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from output_cases import occupancy

from fusionocc_ros.snapshots import SnapshotFolder

pytestmark = pytest.mark.ros


def test_a_snapshot_holds_the_volume_and_a_ply_its_occupied_voxels(tmp_path: Path) -> None:
    before = occupancy()
    folder = SnapshotFolder(str(tmp_path), 10)
    folder.check()
    path = folder.save("", before, "base_link")
    assert path == tmp_path / f"{before.stamp_ns}.npz"
    with np.load(path, allow_pickle=False) as read:
        np.testing.assert_array_equal(read["labels"], before.labels)
        np.testing.assert_array_equal(read["confidence"], before.confidence)
        assert read["class_names"].tolist() == list(before.label_set.names)
        assert (int(read["stamp_ns"]), str(read["frame_id"])) == (before.stamp_ns, "base_link")
        np.testing.assert_allclose(read["origin"], before.grid.lower)
    path = folder.save("a.ply", before, "base\nlink")
    head, body = path.read_bytes().split(b"end_header\n", 1)
    lines = head.decode().splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    assert lines[3:] == [
        f"element vertex {len(before.occupied())}",
        *(f"property float {axis}" for axis in "xyz"),
        *(f"property uchar {name}" for name in ("red", "green", "blue", "label")),
    ]
    vertices = np.frombuffer(body, np.uint8).reshape(-1, 16)
    indices = before.occupied()
    np.testing.assert_allclose(vertices[:, :12].copy().view("<f4"), before.grid.centers(indices), atol=1e-6)
    labels = before.labels[tuple(indices.T)]
    np.testing.assert_array_equal(vertices[:, 15], labels)
    np.testing.assert_array_equal(vertices[:, 12:15], np.array(before.label_set.colors, np.uint8)[labels])


BAD_NAMES = (
    *("../a.npz", "/etc/a.npz", "a/b.npz", ".hidden.npz", "a.npz\0.ply", "a.pth", "a.npz.", "..npz"),
    *("x" * 200 + ".npz", "\u00e4.npz", "a b.npz", "a.npz\n"),
)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_lead_out_of_the_folder_or_are_no_plain_names_are_refused(tmp_path: Path, name: str) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    with pytest.raises(ValueError, match="is not a plain file name"):
        SnapshotFolder(str(inner), 10).save(name, occupancy(), "f")
    assert list(tmp_path.rglob("*")) == [inner]


def test_a_snapshot_follows_no_link_and_overwrites_nothing(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "link.npz").symlink_to(victim)
    (inner / "there.npz").write_text("old")
    (inner / "dangling.npz").symlink_to(tmp_path / "new")
    folder = SnapshotFolder(str(inner), 5)
    for name in ("link.npz", "there.npz", "dangling.npz"):
        with pytest.raises(FileExistsError):
            folder.save(name, occupancy(), "f")
    assert (victim.read_text(), (inner / "there.npz").read_text()) == ("precious", "old")
    assert not (tmp_path / "new").exists()
    folder.save("a.npz", occupancy(), "f")
    folder.save("b.npz", occupancy(), "f")
    with pytest.raises(ValueError, match=r"holds 5 files \(snapshot\.most_files\)"):
        folder.save("c.npz", occupancy(), "f")


def test_without_a_folder_snapshots_are_refused(tmp_path: Path) -> None:
    off = SnapshotFolder("", 5)
    off.check()
    with pytest.raises(ValueError, match=r"switched off: start the node with parameter snapshot\.folder"):
        off.save("a.npz", occupancy(), "f")
    with pytest.raises(ValueError, match=r"snapshot\.folder: .*none is not a folder that can be written"):
        SnapshotFolder(str(tmp_path / "none"), 5).check()
