"""Multiply-adds of the presets for one frame, in thousands of millions. Written by benchmarks/macs.py."""

GIGA_MACS: dict[str, float] = {
    "flashfusion-mini": 9.37,
    "fusionocc-tiny": 95.91,
    "flashocc-m0": 153.30,
    "flashocc-m1": 247.73,
    "flashocc-tiny": 55.94,
    "flashocc-tiny-panoptic": 57.93,
    "uniocc-tiny": 10.49,
}
