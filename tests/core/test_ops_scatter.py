"""Scatter mean and maximum against plain loops, and torch-scatter where it is installed."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionocc_core.ops.scatter import scatter_max, scatter_mean

OPS = {"mean": scatter_mean, "max": scatter_max}


def loop(name: str, values: torch.Tensor, index: torch.Tensor, size: int) -> torch.Tensor:
    reduce = {"mean": lambda rows: rows.mean(0), "max": lambda rows: rows.max(0).values}[name]
    zero = torch.zeros(values.shape[1], dtype=values.dtype)
    rows = [values[index == segment] for segment in range(size)]
    return torch.stack([reduce(r) if len(r) else zero for r in rows]) if rows else values.new_zeros(0, values.shape[1])


@pytest.mark.parametrize("name", OPS)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_equals_a_loop_over_segments(name, data):
    size = data.draw(st.integers(1, 6))
    index = torch.tensor(data.draw(st.lists(st.integers(0, size - 1), max_size=30)), dtype=torch.int64)
    values = torch.randn(len(index), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(len(index)))
    torch.testing.assert_close(OPS[name](values, index, size), loop(name, values, index, size))


@pytest.mark.parametrize("name", OPS)
def test_negative_values_and_empty_segments(name):
    out = OPS[name](torch.tensor([[-3.0], [-1.0]]), torch.tensor([2, 2]), 4)
    assert out[:, 0].tolist() == [0.0, 0.0, -2.0 if name == "mean" else -1.0, 0.0]


@pytest.mark.parametrize("name", OPS)
def test_no_rows_and_no_segments(name):
    none = torch.zeros(0, dtype=torch.int64)
    assert OPS[name](torch.zeros(0, 2), none, 3).tolist() == [[0.0, 0.0]] * 3
    assert OPS[name](torch.zeros(0, 2), none, 0).shape == (0, 2)


@pytest.mark.parametrize("name", OPS)
def test_gradcheck(name):
    values = torch.randn(12, 2, dtype=torch.float64, requires_grad=True)
    index = torch.randint(0, 5, (12,))
    assert torch.autograd.gradcheck(lambda v: OPS[name](v, index, 6), (values,))


def test_torch_scatter_agrees_forward_and_backward():
    pytest.importorskip("torch_scatter", reason="optional backend torch-scatter is not installed")
    index, grad = torch.randint(0, 200, (3000,)), torch.randn(210, 4)
    values = torch.randn(3000, 4)
    for op in OPS.values():
        results = []
        for backend in ("torch", "torch_scatter"):
            leaf = values.clone().requires_grad_()
            out = op(leaf, index, 210, backend=backend)
            out.backward(grad)
            results.append((out.detach(), leaf.grad))
        torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("name", OPS)
def test_missing_torch_scatter_names_the_install_line(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_scatter", None)
    with pytest.raises(ValueError, match="pip install --no-build-isolation torch-scatter"):
        OPS[name](torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64), 1, backend="torch_scatter")


@pytest.mark.parametrize("name", OPS)
def test_bad_input_is_named(name):
    values, index = torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match="backend='numba'"):
        OPS[name](values, index, 1, backend="numba")
    with pytest.raises(ValueError, match="do not fit"):
        OPS[name](values, index[:2], 1)
    with pytest.raises(ValueError, match="do not fit"):
        OPS[name](values, index.float(), 1)
    with pytest.raises(ValueError, match="size=-1"):
        OPS[name](values, index, -1)
