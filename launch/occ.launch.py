"""Start occ_node, and rviz2 where asked for.

    ros2 launch fusionocc_ros occ.launch.py preset:=fusionocc-base checkpoint:=weights/fusion_occ.pth rviz:=true

An argument that is left empty does not override what the parameter file says.
"""

from __future__ import annotations

import os
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.conditions import IfCondition
from launch.launch_description_entity import LaunchDescriptionEntity
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchContext, LaunchDescription

SHARE = Path(get_package_share_directory("fusionocc_ros"))
ARGUMENTS = {
    "params_file": (str(SHARE / "config" / "occ.yaml"), "YAML file with the node's parameters."),
    "preset": ("", "Network: a name from `fusionocc presets`; empty: as in the parameter file."),
    "checkpoint": ("", "File with the network's weights, or an exported network; empty: as in the parameter file."),
    "runtime": ("", "What runs an exported network: auto, onnx, openvino, ...; empty: as in the parameter file."),
    "device": ("", "auto, cpu, cuda or cuda:N; empty: as in the parameter file."),
    "namespace": ("", "Namespace of the node and of all topics but /tf, /tf_static and /diagnostics."),
    "tf": (
        "global",
        "global: /tf and /tf_static; own: those of the namespace, as for several vehicles.",
    ),
    "use_sim_time": (
        "",
        "true: take the time from /clock, as for bags and simulations; empty: as in the parameter file (rviz2: false).",
    ),
    "log_level": ("info", "Of the node: debug, info, warn or error."),
    "rviz": ("false", "Start rviz2 as well."),
    "rviz_config": (str(SHARE / "rviz" / "occ.rviz"), "Configuration of rviz2."),
}
OVERRIDES = ("preset", "checkpoint", "runtime", "device")
"""Arguments that are parameters of the same name."""
OUTPUTS = ("/fusionocc/markers", "/fusionocc/voxels", "/fusionocc/gaussians", "/fusionocc/grid", "/lidar_top")
"""Topics in the rviz configuration that a namespace moves."""
TRANSFORMS = ("/tf", "/tf_static")
GLOBAL, OWN = "global", "own"
DDS_PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")


def parse_switch(name: str, value: str) -> bool:
    """The truth of an argument."""
    if value.lower() not in ("true", "1", "false", "0"):
        raise ValueError(f"{name}:={value}: expected true or false")
    return value.lower() in ("true", "1")


def start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The processes, once the arguments are known."""
    values = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    overrides: dict[str, str | bool] = {name: values[name] for name in OVERRIDES if values[name]}
    given = values["use_sim_time"]
    sim_time = {"use_sim_time": parse_switch("use_sim_time", given)} if given else {}
    namespace = values["namespace"].strip("/")
    moved = [(topic, f"/{namespace}{topic}") for topic in OUTPUTS] if namespace else []
    if values["tf"] not in (GLOBAL, OWN):
        raise ValueError(f"tf:={values['tf']}: expected {GLOBAL} or {OWN}")
    own = [(topic, f"/{namespace}{topic}") for topic in TRANSFORMS] if namespace and values["tf"] == OWN else []
    return [
        Node(
            package="fusionocc_ros",
            executable="occ_node",
            namespace=namespace,
            output="screen",
            emulate_tty=True,
            parameters=[values["params_file"], *([{**sim_time, **overrides}] if sim_time or overrides else [])],
            ros_arguments=["--log-level", values["log_level"]],
            remappings=own,
        ),
        Node(
            package="rviz2",
            executable="rviz2",
            arguments=["-d", values["rviz_config"]],
            parameters=[sim_time] if sim_time else [],
            remappings=moved + own,
            condition=IfCondition(values["rviz"]),
        ),
    ]


def generate_launch_description() -> LaunchDescription:
    """The arguments, the middleware's profile (unless the user has one), the processes."""
    profile = str(SHARE / "config" / "fastdds_shm.xml")
    own = any(os.environ.get(name) for name in DDS_PROFILE_VARIABLES)
    return LaunchDescription(
        [
            *(SetEnvironmentVariable(name, profile) for name in DDS_PROFILE_VARIABLES if not own),
            *(
                DeclareLaunchArgument(name, default_value=default, description=description)
                for name, (default, description) in ARGUMENTS.items()
            ),
            OpaqueFunction(function=start),
        ]
    )
