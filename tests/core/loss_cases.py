"""A little label set and volumes for the tests of losses."""

import torch

from fusionocc_core.grids import LabelSet

UNKNOWN = 255
FREE = 3
LABELS = LabelSet(
    name="small", names=("road", "car", "tree", "free"), colors=((0, 0, 0), (1, 1, 1), (2, 2, 2), (3, 3, 3)), free=FREE
)


def volume(seed, classes=(0, 1, 2, 3, UNKNOWN), samples=2):
    """Scores and labels of a little volume."""
    random = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(samples, 4, 5, 4, 3, generator=random)
    pick = torch.randint(0, len(classes), (samples, 5, 4, 3), generator=random)
    return logits, torch.tensor(classes, dtype=torch.uint8)[pick]
