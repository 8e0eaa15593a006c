"""The two message packages: what is installed agrees with the sources, with other tools, and with the real tf2_msgs."""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from importlib.metadata import version
from pathlib import Path

import pytest
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from tf2_msgs.msg import TFMessage

from fusionocc_msgs.msg import SemanticOccupancy

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"fusionocc_msgs": ROOT / "fusionocc_msgs", "tf2_msgs": ROOT / "standins" / "tf2_msgs"}
OFFICIAL_TF_HASH = "RIHS01_e369d0f05a23ae52508854b66f6aa0437f3449d652e8cbf22d5abe85d020f087"
SOURCE = PACKAGES["fusionocc_msgs"] / "msg" / "SemanticOccupancy.msg"


def installed_hash(package: str, message: str) -> str:
    path = Path(sys.prefix) / "share" / package / "msg" / f"{message}.json"
    if not path.is_file():
        pytest.skip(f"{package} does not come from the wheels: {path} is not there")
    return str(json.loads(path.read_text())["type_hashes"][0]["hash_string"])


def test_the_stand_in_has_the_type_hash_of_the_real_tf2_msgs() -> None:
    assert installed_hash("tf2_msgs", "TFMessage") == OFFICIAL_TF_HASH
    assert TFMessage.get_fields_and_field_types() == {"transforms": "sequence<geometry_msgs/TransformStamped>"}


def test_colcon_never_builds_the_stand_in() -> None:
    assert (PACKAGES["tf2_msgs"] / "COLCON_IGNORE").is_file()


def fields() -> list[tuple[str, str]]:
    found = []
    for line in SOURCE.read_text().splitlines():
        text = line.split("#")[0].strip()
        if text and "=" not in text:
            kind, name = text.split()
            found.append((name, kind))
    return found


def test_the_installed_message_is_the_one_in_the_sources() -> None:
    installed = SemanticOccupancy.get_fields_and_field_types()
    assert list(installed) == [name for name, _ in fields()]
    constants = re.findall(r"^uint8 ([A-Z_]+)=(\d+)$", SOURCE.read_text(), re.MULTILINE)
    assert len(constants) == 6
    assert {name: getattr(SemanticOccupancy, name) for name, _ in constants} == {n: int(v) for n, v in constants}


def test_every_field_of_the_message_is_explained() -> None:
    above = ""
    unexplained = []
    for line in SOURCE.read_text().splitlines():
        if line.startswith("#"):
            above = line
        elif not line.strip():
            above = ""
        elif "=" not in line and not above:
            unexplained.append(line)
    # Sizes share one comment, the encoding is explained by its constants, and so is the source of ego motion.
    assert {line.split()[-1] for line in unexplained} <= {"encoding", "ego_motion"}


def test_tools_that_only_have_the_text_agree_on_the_type() -> None:
    store = get_typestore(Stores.ROS2_JAZZY)
    store.register(get_types_from_msg(SOURCE.read_text(), "fusionocc_msgs/msg/SemanticOccupancy"))
    digest = store.hash_rihs01("fusionocc_msgs/msg/SemanticOccupancy")
    assert digest == installed_hash("fusionocc_msgs", "SemanticOccupancy")


@pytest.mark.parametrize("name", PACKAGES)
def test_package_files_agree_with_each_other(name: str) -> None:
    folder = PACKAGES[name]
    package = ElementTree.parse(folder / "package.xml").getroot()
    cmake = (folder / "CMakeLists.txt").read_text()
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    assert package.findtext("name") == name
    assert f"project({name})" in cmake
    assert project["project"]["name"] == name.replace("_", "-")
    interfaces = {f"{kind}/{path.name}" for kind in ("msg", "srv") for path in (folder / kind).glob(f"*.{kind}")}
    assert set(re.findall(r'"((?:msg|srv)/\w+\.\w+)"', cmake)) == interfaces
    needed = {e.text for e in package.findall("depend")}
    (dependencies,) = re.findall(r"DEPENDENCIES ([a-z_ ]+)", cmake)
    assert set(dependencies.split()) == needed
    built_with = {r.split("==")[0] for r in project["build-system"]["requires"]}
    assert {f"ros-{n.replace('_', '-')}" for n in needed} <= built_with
    assert package.find("member_of_group").text == "rosidl_interface_packages"  # type: ignore[union-attr]


def test_versions_and_pins_agree_across_the_repository() -> None:
    folder = PACKAGES["fusionocc_msgs"]
    package = ElementTree.parse(folder / "package.xml").getroot()
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    root = ElementTree.parse(ROOT / "package.xml").getroot()
    assert package.findtext("version") == project["project"]["version"] == root.findtext("version")
    assert version("fusionocc-msgs") == project["project"]["version"]
    pins: dict[str, set[str]] = {}
    texts = [(ROOT / "requirements" / f"{n}.txt").read_text() for n in ("ros", "colcon")]
    texts += [(folder / "pyproject.toml").read_text() for folder in PACKAGES.values()]
    for name, pin in re.findall(r"(ros-[a-z0-9-]+)(?:\[\w+\])?==([\d.]+)", "\n".join(texts)):
        pins.setdefault(name, set()).add(pin)
    assert {name: found for name, found in pins.items() if len(found) > 1} == {}


def test_both_packages_bring_the_fix_for_the_wheels() -> None:
    for folder in PACKAGES.values():
        project = tomllib.loads((folder / "pyproject.toml").read_text())
        assert (folder / project["tool"]["scikit-build"]["cmake"]["define"]["CMAKE_PROJECT_INCLUDE"]).is_file()
