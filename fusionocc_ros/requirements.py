"""Packages that only some commands need, with the line that installs each."""

from __future__ import annotations

from importlib.util import find_spec

INSTALL = {
    "rclpy": "source a ROS 2 installation (. /opt/ros/<distro>/setup.bash), or: pip install -r requirements/ros.txt",
    "rosbags": 'pip install "rosbags==0.11.9"',
    "fusionocc_msgs": "build it with colcon, or: pip install ./fusionocc_msgs",
    "tf2_msgs": "source a ROS 2 installation, or: pip install ./standins/tf2_msgs",
}


def require(*packages: str) -> None:
    """Raise where a package is missing, before work begins.

    Raises:
        ModuleNotFoundError: names every missing package and how to install it.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        lines = "; ".join(f"{package} ({INSTALL[package]})" for package in missing)
        raise ModuleNotFoundError(f"not installed: {lines}", name=missing[0])
