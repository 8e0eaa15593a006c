"""What a labelling run does, and the lengths that it works with."""

from __future__ import annotations

from dataclasses import dataclass

from fusionocc_core.grids import OCC3D_GRID, OCC3D_LABELS, SURROUNDOCC_GRID, VoxelGrid

LAYOUTS = ("occ3d", "surroundocc")
FREE_SPACE = ("scene", "keyframe")

OTHERS, FREE = OCC3D_LABELS.names.index("others"), OCC3D_LABELS.free
UNLABELLED, DROPPED = 254, 253
"""Instead of a class: of a point that has none, and of one that is no surface (noise, the own vehicle)."""
GROUND = tuple(OCC3D_LABELS.names.index(n) for n in ("driveable_surface", "other_flat", "sidewalk", "terrain"))
STRUCTURE = tuple(OCC3D_LABELS.names.index(n) for n in ("manmade", "vegetation"))
ALWAYS_STILL = (*GROUND, *STRUCTURE)
"""Classes that no box has: a point of them belongs to the static scene even inside a box."""
MAY_MOVE = tuple(
    OCC3D_LABELS.names.index(n)
    for n in ("bicycle", "bus", "car", "construction_vehicle", "motorcycle", "pedestrian", "trailer", "truck")
)
"""Points of these that lie in no box are shown at their own keyframe only."""


@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """The choices of a run; lengths in metres."""

    layout: str = "occ3d"
    """One of LAYOUTS."""
    boxes_only: bool = False
    """Without point labels: what lies in a box takes the box's class, everything else is "others"."""
    keyframes_only: bool = False
    """Leave out the sweeps between keyframes."""
    free_space: str = "scene"
    """Whose pulses show that a voxel is free: "scene" all of the scene's, "keyframe" those of the keyframe's sweep."""
    densify: bool = False
    """Fill holes of surfaces and the inside of vehicles."""
    cell: float = 0.1
    """Edge of the cells that aggregated points are thinned to; a cell is one vote for its class."""
    box_margin: float = 0.1
    """Boxes are enlarged by this to both sides, to the front and back, and upwards."""
    feet: float = 0.2
    """A point without label so near to the bottom of a box may be ground or wheel: it is left out."""

    def __post_init__(self) -> None:
        """Refuse choices that do not exist."""
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout={self.layout!r}: expected one of {', '.join(LAYOUTS)}")
        if self.free_space not in FREE_SPACE:
            raise ValueError(f"free_space={self.free_space!r}: expected one of {', '.join(FREE_SPACE)}")
        for name in ("cell", "box_margin", "feet"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected metres between 0 and 1")

    @property
    def grid(self) -> VoxelGrid:
        """The grid of the layout."""
        return OCC3D_GRID if self.layout == "occ3d" else SURROUNDOCC_GRID
