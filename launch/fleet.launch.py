"""Several vehicles in one DDS domain: occ.launch.py once for each, in a namespace of its own.

    ros2 launch fusionocc_ros fleet.launch.py vehicles:="truck_1 truck_2"

Topics, services and parameters of each vehicle lie under its name (/truck_1/fusionocc/occupancy), and so do its /tf and
/tf_static unless tf:=global: then every vehicle needs frames of its own, set in its parameter file.
"""

from __future__ import annotations

import re
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_entity import LaunchDescriptionEntity
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

from launch import LaunchContext, LaunchDescription

SHARE = Path(get_package_share_directory("fusionocc_ros"))
ARGUMENTS = {
    "vehicles": (None, "Their names, with spaces between them."),
    "params_folder": ("", "Folder with a file <vehicle>.yaml for each; empty: params_file is for all."),
}
PASSED_ON = {
    "params_file": (str(SHARE / "config" / "occ.yaml"), "YAML file with the parameters of every vehicle."),
    "preset": ("", "Network; empty: as in the parameter file."),
    "checkpoint": ("", "File with the network's weights, or an exported network; empty: as in the parameter file."),
    "runtime": ("", "What runs an exported network; empty: as in the parameter file."),
    "device": ("", "auto, cpu, cuda or cuda:N; empty: as in the parameter file."),
    "tf": ("own", "own: <vehicle>/tf; global: one /tf for all."),
    "use_sim_time": ("", "true: take the time from /clock; empty: as in the parameter file."),
    "log_level": ("info", "Of the nodes."),
}
"""Arguments of occ.launch.py, some with another default."""
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """occ.launch.py for each vehicle, once the arguments are known."""
    values = {name: LaunchConfiguration(name).perform(context) for name in {**ARGUMENTS, **PASSED_ON}}
    vehicles = values["vehicles"].split()
    if not vehicles or len(set(vehicles)) != len(vehicles) or not all(NAME.fullmatch(name) for name in vehicles):
        raise ValueError(f"vehicles:={values['vehicles']!r}: expected names that differ, of letters, digits and _")
    included = []
    for vehicle in vehicles:
        given = {name: values[name] for name in PASSED_ON} | {"namespace": vehicle}
        if values["params_folder"]:
            given["params_file"] = str(Path(values["params_folder"]) / f"{vehicle}.yaml")
        included.append(
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(str(SHARE / "launch" / "occ.launch.py")),
                launch_arguments=list(given.items()),
            )
        )
    return included


def generate_launch_description() -> LaunchDescription:
    """The arguments, the vehicles."""
    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(name, default_value=default, description=description)
                for name, (default, description) in {**ARGUMENTS, **PASSED_ON}.items()
            ),
            OpaqueFunction(function=start),
        ]
    )
