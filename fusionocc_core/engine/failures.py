"""A loss or gradient that is not finite: say so, and keep what is needed to look into it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fusionocc_core.engine.run_folder import whole_file


class LossFailure(ValueError):
    """Training came to numbers that are not finite. The weights were not touched by that step."""


@dataclass(frozen=True, kw_only=True)
class SeenLoss:
    """What one forward pass of a step gave."""

    tokens: tuple[str, ...]
    """The samples."""
    terms: Mapping[str, Tensor]
    """Scalars, detached; "loss" is their weighted sum."""


def report_failure(
    out: Path, *, what: str, step: int, rank: int, seen: Sequence[SeenLoss], details: Mapping[str, Any]
) -> LossFailure:
    """Write this process's samples and loss terms of the failed step to ``failures/``; gives the error to raise."""
    path = out / "failures" / f"step-{step:08d}-rank-{rank}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    passes, guilty = [], []
    for one in seen:
        terms = {name: float(value) for name, value in one.terms.items()}
        if not all(map(math.isfinite, terms.values())):
            guilty.append(one.tokens)
        passes.append({"tokens": list(one.tokens), "terms": {name: _plain(value) for name, value in terms.items()}})
    content = {"what": what, "step": step, "rank": rank, **details, "passes": passes}
    with whole_file(path) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())
    tokens = ", ".join(token for group in guilty for token in group) or "another process's samples or the gradients"
    return LossFailure(
        f"step {step}: {what} ({tokens}); the samples of this step and their loss terms are in {path}. The weights of "
        "the last checkpoint are sound. Look at these samples; a lower rate (train.optimizer.lr), a longer warm-up "
        "(train.schedule.warmup_steps) or train.precision=fp32 are the usual cures"
    )


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
