"""Multiply-adds of the presets for one frame, in thousands of millions. Written by benchmarks/macs.py."""

GIGA_MACS: dict[str, float] = {
    "flashfusion-mini": 9.37,
    "flashfusion-r50": 157.06,
    "fusionocc-base": 4004.27,
    "fusionocc-tiny": 95.91,
    "flashocc-m0": 153.30,
    "flashocc-m1": 247.73,
    "flashocc-m2": 438.06,
    "flashocc-tiny": 55.94,
    "panoptic-flashocc-tiny": 181.85,
    "panoptic-flashocc-depth": 296.56,
    "panoptic-flashocc-depth4d": 556.11,
    "flashocc-tiny-panoptic": 57.93,
    "uniocc-r50": 536.52,
    "uniocc-flash-r50": 452.85,
    "uniocc-tiny": 10.49,
    "gaussianformer-tiny": 12.81,
    "gaussianformer2-tiny": 13.54,
    "gaussianfusion-tiny": 13.68,
}
