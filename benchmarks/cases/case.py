"""What a row of benchmarks/ops.py consists of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from floors import Work
from op_inputs import OFFICIAL, Size, simulated_cloud
from timing import Candidate
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Case:
    """Candidates for the same result, ours first."""

    op: str
    name: str
    candidates: tuple[Candidate, ...]
    work: Work
    tolerance: float = 1e-5
    """By which results may differ, relative to the largest value; zero: bit by bit."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What cases are made from."""

    cloud: Tensor
    size: Size
    device: str = "cpu"
    short: bool = False
    """Only the rows that say most."""


def setting(size: Size = OFFICIAL, device: str = "cpu", short: bool = False, cloud: Tensor | None = None) -> Setting:
    """With a simulated cloud unless there is one."""
    torch.manual_seed(0)
    cloud = simulated_cloud(size) if cloud is None else cloud
    return Setting(cloud=cloud.to(device), size=size, device=device, short=short)


def gradients(run: Callable[[], Tensor], leaves: Sequence[Tensor]) -> Callable[[], tuple[Tensor, ...]]:
    """Forward and backward of ``run``, with a gradient of its result that lies in memory as the result does."""
    made: list[Tensor] = []

    def forward_backward() -> tuple[Tensor, ...]:
        result = run()
        if not made:
            torch.manual_seed(0)
            values = torch.rand(result.shape, device=result.device) + 0.5
            made.append(torch.empty_like(result).copy_(values))
        return torch.autograd.grad(result, leaves, made[0])

    return forward_backward


def with_backward(candidates: Sequence[Candidate], leaves: Sequence[Tensor]) -> tuple[Candidate, ...]:
    """The same candidates, each with its backward pass."""
    return tuple(replace(c, run=gradients(c.run, leaves)) for c in candidates)  # type: ignore[arg-type]
