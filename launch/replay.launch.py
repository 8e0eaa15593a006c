"""Play a bag to occ_node, on the bag's clock.

    fusionocc bag from-nuscenes data/nuscenes --scene scene-0061 --out street_bag
    ros2 launch fusionocc_ros replay.launch.py bag:=street_bag

The arguments of occ.launch.py work here too, but for use_sim_time, which is true, and namespace: the bag's topics
have none.
"""

from __future__ import annotations

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, ExecuteProcess, IncludeLaunchDescription, OpaqueFunction, Shutdown
from launch.launch_description_entity import LaunchDescriptionEntity
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

from launch import LaunchContext, LaunchDescription

SHARE = Path(get_package_share_directory("fusionocc_ros"))
FUSIONOCC, ROS2 = "fusionocc", "ros2"
ARGUMENTS = {
    "bag": (None, "Folder of the bag."),
    "rate": ("1.0", "Bag seconds a second."),
    "loop": ("false", "Begin anew at the end."),
    "player": (FUSIONOCC, "fusionocc (`fusionocc bag play`) or ros2 (`ros2 bag play`)."),
}
PASSED_ON = {
    "params_file": (str(SHARE / "config" / "nuscenes.yaml"), "YAML file with the node's parameters."),
    "preset": ("", "Network; empty: as in the parameter file."),
    "checkpoint": ("", "File with the network's weights, or an exported network; empty: as in the parameter file."),
    "runtime": ("", "What runs an exported network; empty: as in the parameter file."),
    "device": ("", "auto, cpu, cuda or cuda:N; empty: as in the parameter file."),
    "log_level": ("info", "Of the node."),
    "rviz": ("false", "Start rviz2 as well."),
}
"""Arguments of occ.launch.py, some with another default."""


def refuse_namespace(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """An argument that is not declared here would still reach occ.launch.py, and move the node away from the bag."""
    namespace = context.launch_configurations.get("namespace", "")
    if namespace:
        raise ValueError(f"namespace:={namespace}: a bag is played on its own topics; leave it out")
    return []


def play(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The player, once the arguments are known; when it ends, so does everything else."""
    values = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    if values["player"] not in (FUSIONOCC, ROS2):
        raise ValueError(f"player:={values['player']}: expected {FUSIONOCC} or {ROS2}")
    command = ["ros2", "bag", "play"] if values["player"] == ROS2 else ["fusionocc", "bag", "play"]
    command += [values["bag"], "--rate", values["rate"], "--clock", "100"]
    if values["loop"].lower() in ("true", "1"):
        command.append("--loop")
    return [ExecuteProcess(cmd=command, output="screen", on_exit=[Shutdown(reason="the bag has ended")])]


def generate_launch_description() -> LaunchDescription:
    """The arguments, the node on the bag's clock, the player."""
    arguments = {**ARGUMENTS, **PASSED_ON}
    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(name, default_value=default, description=description)
                for name, (default, description) in arguments.items()
            ),
            OpaqueFunction(function=refuse_namespace),
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(str(SHARE / "launch" / "occ.launch.py")),
                launch_arguments=[
                    ("use_sim_time", "true"),
                    *((name, LaunchConfiguration(name)) for name in PASSED_ON),
                ],
            ),
            OpaqueFunction(function=play),
        ]
    )
