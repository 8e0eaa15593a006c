"""Package metadata for pip, colcon and ament.

The ament package ``fusionocc_ros`` holds both Python packages. Both executables are console scripts in ``bin``, so that
``fusionocc`` is on the PATH after pip and after colcon; ``lib/fusionocc_ros/occ_node``, where ``ros2 run`` and
``ros2 launch`` look, is a launcher that starts the one in ``bin``.
"""

from glob import glob
from pathlib import Path

from setuptools import find_packages, setup

PACKAGE = "fusionocc_ros"
SHARE = f"share/{PACKAGE}"


def pinned(name: str) -> list[str]:
    """What requirements/NAME.txt lists, without comments and includes, exact pins loosened to a minimum."""
    lines = (Path(__file__).resolve().parent / "requirements" / f"{name}.txt").read_text().splitlines()
    entries = (line.split("#")[0].strip() for line in lines)
    return [entry.replace("==", ">=") for entry in entries if entry and not entry.startswith("-")]


# timm asks for torchvision, and torch decides which.
CORE = [entry for entry in pinned("core") if not entry.startswith("torchvision")]

setup(
    name=PACKAGE,
    version="0.1.0",
    description="3D semantic occupancy from cameras and LiDAR: core library and ROS 2 node",
    license="Apache-2.0",
    maintainer="fusionocc maintainers",
    maintainer_email="maintainers@fusionocc.invalid",
    packages=find_packages(include=["fusionocc_core", "fusionocc_core.*", "fusionocc_ros", "fusionocc_ros.*"]),
    package_data={"fusionocc_core": ["py.typed", "weights/*", "viz/*.html", "viz/*.js", "viz/*.css"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (SHARE, ["package.xml"]),
        (f"{SHARE}/launch", glob("launch/*.launch.py")),
        (f"{SHARE}/config", glob("config/*")),
        (f"{SHARE}/rviz", glob("rviz/*.rviz")),
        (f"lib/{PACKAGE}", ["resource/occ_node"]),
    ],
    python_requires=">=3.10",
    install_requires=CORE,
    extras_require={
        "nuscenes": pinned("nuscenes"),
        "sim": pinned("sim"),
        "train": pinned("train"),
        "export": pinned("export"),
        "ros": pinned("ros"),
        "ray": pinned("ray"),
        # Later releases want numpy 2, which nuscenes-devkit refuses.
        "view": ["rerun-sdk>=0.23.1,<0.24", "pyarrow>=20,<21"],
        "spconv": ["spconv-cu118>=2.3.8"],
        "scatter": ["torch-scatter>=2.1.2"],
    },
    zip_safe=True,
    entry_points={
        "console_scripts": ["fusionocc = fusionocc_core.cli:main", "occ_node = fusionocc_ros.node:main"],
        "fusionocc.commands": ["ros = fusionocc_ros.commands:add_parser"],
        "fusionocc.view_sources": [
            "bag = fusionocc_ros.bag_view:OPENER",
            "live = fusionocc_ros.live_view:OPENER",
        ],
    },
)
