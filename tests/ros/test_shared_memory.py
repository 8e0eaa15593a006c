"""Segments of shared memory that crashed processes have left are removed, those of living ones are not."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from xml.etree import ElementTree

from fusionocc_ros.dds import share_folder
from fusionocc_ros.shared_memory import remove_dead_segments


def segment(folder: Path, name: str, *, age_s: float = 1000.0, lock: bool = True) -> Path:
    path = folder / name
    path.write_bytes(bytes(4096))
    if lock:
        (folder / f"{name}_el").touch()
    then = path.stat().st_mtime - age_s
    os.utime(path, (then, then))
    return path


def test_only_what_is_old_and_of_a_dead_process_is_removed(tmp_path: Path) -> None:
    dead = [segment(tmp_path, f"{kind}_00ba17b7482cd47e") for kind in ("fastrtps", "fastdds")]
    kept = [
        segment(tmp_path, "fastrtps_1111111111111111"),
        segment(tmp_path, "fastrtps_2222222222222222", age_s=5),
        segment(tmp_path, "fastrtps_3333333333333333", lock=False),
        segment(tmp_path, "fastrtps_port7411"),
        segment(tmp_path, "somebody_00ba17b7482cd47e"),
    ]
    lock = os.open(tmp_path / "fastrtps_1111111111111111_el", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        assert remove_dead_segments(tmp_path) == (2, 2 * 4096)
    finally:
        os.close(lock)
    assert all(path.exists() for path in kept)
    assert not any(path.exists() or path.with_name(f"{path.name}_el").exists() for path in dead)
    assert remove_dead_segments(tmp_path) == (1, 4096)  # its process has ended
    assert remove_dead_segments(tmp_path / "none") == (0, 0)


def test_both_profiles_find_each_other_soon() -> None:
    space = "{http://www.eprosima.com}"
    found = []
    for name in ("fastdds_shm.xml", "fastdds_discovery.xml"):
        discovery = ElementTree.parse(share_folder() / "config" / name).getroot().find(f".//{space}discovery_config")
        assert discovery is not None
        found.append([(e.tag.removeprefix(space), (e.text or "").strip()) for e in discovery.iter()][1:])
    lease = [("leaseDuration", ""), ("sec", "5")]
    assert found == [[*lease, ("leaseAnnouncement", ""), ("sec", "0"), ("nanosec", "500000000")]] * 2
