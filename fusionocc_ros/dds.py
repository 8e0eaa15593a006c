"""Settings of the middleware that have to be in place before rclpy starts."""

from __future__ import annotations

import os
from pathlib import Path

PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
"""Fast DDS 2 (up to ROS 2 Jazzy) reads the first, Fast DDS 3 the second (and the first, with a warning)."""
PROFILE = "fastdds_shm.xml"


def share_folder() -> Path:
    """The folder with config/, launch/ and rviz/: the installed package's share, or the source tree.

    Raises:
        FileNotFoundError: neither is there.
    """
    source = Path(__file__).resolve().parent.parent
    if (source / "config" / PROFILE).is_file():
        return source
    prefixes = [Path(p) for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
    # Without colcon: lib/pythonX.Y/site-packages/fusionocc_ros lies four levels below the prefix.
    prefixes += list(Path(__file__).resolve().parents)
    for prefix in prefixes:
        share = prefix / "share" / "fusionocc_ros"
        if (share / "config" / PROFILE).is_file():
            return share
    raise FileNotFoundError(
        f"share/fusionocc_ros/config/{PROFILE} is in none of AMENT_PREFIX_PATH and the prefixes above {__file__}; "
        "install the package with pip or colcon"
    )


def use_shipped_profile() -> Path | None:
    """Point Fast DDS to the shipped profile, unless the user has chosen one; call before rclpy.init, in every process.

    Without it Fast DDS drops most pictures that are sent with best effort: its buffers are smaller than one picture.

    Returns:
        The profile, or None where the user's own is left in place.
    """
    if any(os.environ.get(name) for name in PROFILE_VARIABLES):
        return None
    profile = share_folder() / "config" / PROFILE
    os.environ.update(dict.fromkeys(PROFILE_VARIABLES, str(profile)))
    return profile
