"""Splatting: tiles against listed pairs, both against the plain formula; boxes, memory, repetition, bad input."""

from __future__ import annotations

import weakref
from collections import Counter
from dataclasses import replace

import pytest
import torch
from gaussian_splat_cases import FULL, GRID, leaves, some
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from fusionocc_core.gaussians import Gaussians
from fusionocc_core.ops.gaussian_splat import SplatOptions, splat_additive, splat_probabilistic
from fusionocc_core.ops.gaussian_splat_boxes import BOXES, SplatGrid, boxes_of

TILES, PAIRS = SplatOptions(backend="tiles"), SplatOptions(backend="pairs")


def volumes(gaussians: Gaussians, options: SplatOptions, grid: SplatGrid = GRID) -> list[torch.Tensor]:
    splat = splat_probabilistic(gaussians, grid, options)
    return [
        splat_additive(gaussians, grid, options), splat.semantics_BCZYX, splat.occupancy_BZYX, splat.density_BZYX
    ]  # fmt: skip


def volumes_and_gradients(gaussians: Gaussians, options: SplatOptions) -> list[torch.Tensor]:
    gaussians, tensors = leaves(gaussians)
    found = volumes(gaussians, options)
    generator = torch.Generator().manual_seed(3)
    sum((v * torch.randn(v.shape, generator=generator, dtype=v.dtype)).sum() for v in found).backward()
    return [*(v.detach() for v in found), *(tensor.grad for tensor in tensors)]


def grid_centers(grid: SplatGrid) -> torch.Tensor:
    axes = [grid.centers(torch.arange(n), axis, torch.float64) for axis, n in enumerate(grid.shape_xyz)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def distances(gaussians: Gaussians, grid: SplatGrid) -> torch.Tensor:
    """(B, G, X, Y, Z) squared, in standard deviations, by inverting covariances."""
    offsets = grid_centers(grid) - gaussians.means_BG3[:, :, None, None, None]
    return torch.einsum("bgxyzi,bgij,bgxyzj->bgxyz", offsets, gaussians.covariances_BG33().inverse(), offsets)


@pytest.mark.parametrize("backend", ["tiles", "pairs"])
def test_equals_the_formula_where_boxes_cut_nothing_off(backend):
    gaussians = some()
    additive, semantics, occupancy, density = volumes(gaussians, SplatOptions(reach=60.0, backend=backend))
    alpha = (-0.5 * distances(gaussians, GRID)).exp()
    weights = gaussians.opacities_BG * gaussians.covariances_BG33().det().rsqrt() * (2 * torch.pi) ** -1.5
    total = torch.einsum("bg,bgxyz->bzyx", weights, alpha)
    mixed = torch.einsum("bg,bgc,bgxyz->bczyx", weights, gaussians.semantics_BGC, alpha) / total.unsqueeze(1)
    expected = torch.einsum("bg,bgc,bgxyz->bczyx", gaussians.opacities_BG, gaussians.semantics_BGC, alpha)
    torch.testing.assert_close(additive, expected)
    torch.testing.assert_close(semantics, torch.where(total.unsqueeze(1) > 1e-9, mixed, 0.25))
    torch.testing.assert_close(occupancy, (1 - (1 - alpha).prod(dim=1)).permute(0, 3, 2, 1))
    torch.testing.assert_close(density, alpha.sum(dim=1).permute(0, 3, 2, 1))


@pytest.mark.parametrize("memory_bytes", [2**28, 200_000])
@pytest.mark.parametrize("boxes", BOXES)
def test_tiles_and_pairs_agree_forward_and_backward(boxes, memory_bytes):
    """The smaller memory needs several blocks, and several chunks in each."""
    options = replace(TILES, boxes=boxes, memory_bytes=memory_bytes)
    tiles = volumes_and_gradients(some(), options)
    torch.testing.assert_close(tiles, volumes_and_gradients(some(), replace(options, backend="pairs")))
    assert all(gradient.any() for gradient in tiles[4:])


def test_tiles_and_pairs_agree_in_float32_for_needles_and_plates():
    """Axes of 1 cm beside 3.2 m: inverted float32 covariances lose their sign here."""
    gaussians = some(num=60, seed=1)
    flat = torch.where(
        torch.rand(gaussians.scales_BG3.shape, generator=torch.Generator().manual_seed(5)) < 0.5, 0.01, 3.2
    )
    exact = replace(gaussians, scales_BG3=flat.double())
    found, expected = volumes(exact.to(torch.float32), TILES), volumes(exact, PAIRS)
    for volume, other in zip(found, expected, strict=True):
        assert (volume - other).abs().max() < 1e-4 * other.abs().max()


def test_gradcheck():
    gaussians, tensors = leaves(some(num=3, batch=1, classes=2, spread=0.6))
    names = list(vars(gaussians))
    options = replace(TILES, reach=30.0)  # steps of a finite difference must not move a box

    def found(*values):
        return tuple(volumes(Gaussians(**dict(zip(names, values, strict=True))), options))

    assert torch.autograd.gradcheck(found, tensors, fast_mode=True)


def test_exact_boxes_hold_every_voxel_within_reach_and_lie_in_the_cubes():
    gaussians = some(num=200)
    near = distances(gaussians, GRID) <= 2.5**2
    indices = torch.stack(torch.meshgrid(*(torch.arange(n) for n in GRID.shape_xyz), indexing="ij"), dim=-1)
    inside = {}
    for kind in BOXES:
        held = [
            ((indices >= box.first_G3[:, None, None, None]) & (indices <= box.last_G3[:, None, None, None])).all(-1)
            for box in boxes_of(gaussians, GRID, 2.5, kind)
        ]
        inside[kind] = torch.stack(held)
    assert near.any()
    assert not (near & ~inside["exact"]).any()
    assert not (inside["exact"] & ~inside["cube"]).any()
    assert inside["exact"].sum() < 0.8 * inside["cube"].sum()
    assert (near & ~inside["unrotated"]).any()  # what its docstring warns of


def test_the_same_input_gives_the_same_bits():
    gaussians = some(num=200, dtype=torch.float32)
    options = replace(TILES, memory_bytes=1_000_000)
    first, second = (volumes_and_gradients(gaussians, options) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_same_bits_on_several_threads():
    """Many tiles, long lists, more than one block: where threads could share a sum."""
    gaussians = some(num=400, batch=1, dtype=torch.float32)
    options = replace(TILES, memory_bytes=4_000_000)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        first, second = (volumes_and_gradients(gaussians, options) for _ in range(2))
        torch.set_num_threads(1)
        alone = volumes_and_gradients(gaussians, options)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for several, one in zip(first, alone, strict=True):
        torch.testing.assert_close(several, one, rtol=1e-5, atol=1e-5 * float(one.abs().max()))


def test_two_in_a_batch_equal_two_singles():
    both = some()
    for b in range(2):
        one = Gaussians(**{name: value[b : b + 1] for name, value in vars(both).items()})
        for of_one, of_both in zip(volumes(one, TILES), volumes(both, TILES), strict=True):
            torch.testing.assert_close(of_one[0], of_both[b])


@pytest.mark.parametrize("backend", ["tiles", "pairs"])
@pytest.mark.parametrize("case", ["no Gaussian", "outside", "far outside"])
def test_nothing_to_splat(case, backend):
    gaussians = some(num=0 if case == "no Gaussian" else 5)
    if "outside" in case:
        gaussians = replace(gaussians, means_BG3=gaussians.means_BG3 + (1e30 if case == "far outside" else -90))
    additive, semantics, occupancy, density, *gradients = volumes_and_gradients(
        gaussians, SplatOptions(backend=backend)
    )
    assert additive.shape == (gaussians.batch_size, 4, 6, 9, 11)
    assert not additive.any()
    assert not occupancy.any()
    assert not density.any()
    assert (semantics == 0.25).all()
    assert not any(gradient.any() for gradient in gradients)


def test_sizes_at_both_ends_stay_finite():
    """Scales at the bounds, one of each beside the other, and means on voxel centres (alpha = 1)."""
    gaussians = some(num=3, batch=1, dtype=torch.float32)
    gaussians = replace(
        gaussians,
        means_BG3=torch.tensor([[[-2.75, -1.8, -0.7], [-0.25, 0.2, 0.5], [0.25, 0.6, 0.5]]]),
        scales_BG3=torch.tensor([[[1e-4, 1e-4, 1e-4], [1e4, 1e4, 1e4], [1e-4, 1.0, 1e4]]]),
    )
    found = volumes_and_gradients(gaussians, TILES)
    assert all(tensor.isfinite().all() for tensor in found)
    assert found[2].max() == pytest.approx(1, abs=1e-6)
    assert found[2].min() > 0.99  # the huge one fills all


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_also_under_autocast(dtype):
    gaussians = some(dtype=dtype)
    expected = volumes(gaussians.to(torch.float32), TILES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = volumes(gaussians, TILES)
    assert all(a.dtype == torch.float32 and torch.equal(a, b) for a, b in zip(found, expected, strict=True))


class PeakMemory(TorchDispatchMode):
    """Bytes of the tensors that live at once; scratch memory inside operators is not seen."""

    def __init__(self):
        super().__init__()
        self.users, self.now, self.peak = Counter(), 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_flatten(out)[0]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key = storage.data_ptr(), storage.nbytes()
                self.now += 0 if self.users[key] else key[1]
                self.users[key] += 1
                weakref.finalize(tensor, self.forget, key)
        self.peak = max(self.peak, self.now)
        return out

    def forget(self, key):
        self.users[key] -= 1
        self.now -= 0 if self.users[key] else key[1]


def test_memory_stays_within_what_is_allowed():
    gaussians, _ = leaves(some(num=1500, batch=1, dtype=torch.float32))
    peaks = {}
    for memory_bytes in (8_000_000, 64_000_000):
        options = replace(TILES, memory_bytes=memory_bytes)
        with PeakMemory() as memory:
            splat = splat_probabilistic(gaussians, GRID, options)
            (splat.semantics_BCZYX.square().sum() + splat.occupancy_BZYX.sum()).backward()
        peaks[memory_bytes] = memory.peak
    beside = 1500 * 1000 + 600 * 8 * 100  # numbers a Gaussian in float64, results
    assert peaks[8_000_000] < 8_000_000 + beside
    assert peaks[8_000_000] < 0.7 * peaks[64_000_000] < 0.7 * (64_000_000 + beside)


@pytest.mark.parametrize("backend", ["tiles", "pairs"])
def test_a_mixture_by_opacity_leaves_the_size_of_a_gaussian_out(backend):
    gaussians = some()
    found = splat_probabilistic(gaussians, GRID, SplatOptions(reach=60.0, backend=backend, mixture="opacity"))
    weights = gaussians.opacities_BG[:, :, None, None, None] * (-0.5 * distances(gaussians, GRID)).exp()
    mixed = torch.einsum("bgc,bgxyz->bczyx", gaussians.semantics_BGC, weights)
    total = weights.sum(dim=1).permute(0, 3, 2, 1).unsqueeze(1)
    torch.testing.assert_close(found.semantics_BCZYX, torch.where(total > 1e-9, mixed / total, 0.25))
    torch.testing.assert_close(
        found.occupancy_BZYX, splat_probabilistic(gaussians, GRID, SplatOptions(reach=60.0)).occupancy_BZYX
    )


def test_huge_and_tiny_ones_beside_a_budget_for_one_tile_never_give_nan():
    """A thousand of both in float32, blocks of a few tiles; then a budget that is too small says so."""
    gaussians = some(num=1000, batch=1, dtype=torch.float32)
    ends = torch.where(torch.arange(1000)[None, :, None] % 2 == 0, 1e-4, 9e3)
    gaussians = replace(gaussians, scales_BG3=ends.expand(1, 1000, 3).contiguous())
    found = volumes_and_gradients(gaussians, replace(TILES, memory_bytes=12_000_000))
    assert all(tensor.isfinite().all() for tensor in found)
    with pytest.raises(ValueError, match=r"memory_bytes=1000000: .* \d+ Gaussians, which takes \d+ bytes"):
        splat_additive(gaussians, GRID, replace(TILES, memory_bytes=1_000_000))


def spoilt(name, value):
    gaussians = some()
    tensor = getattr(gaussians, name).clone()
    tensor[1, 3] = value
    return replace(gaussians, **{name: tensor})


def test_bad_values_are_named():
    for name, field in (("means", "means_BG3"), ("opacities", "opacities_BG"), ("semantics", "semantics_BGC")):
        with pytest.raises(ValueError, match=rf"Gaussians.{name}: .* not finite, the first at \[1, 3"):
            splat_additive(spoilt(field, torch.nan), GRID)
    for scale in (0.0, -1.0, 1e-5, 1e5):
        with pytest.raises(ValueError, match=r"Gaussians.scales: 3 values such as .* lie outside 0.0001 to 10000 m"):
            splat_probabilistic(spoilt("scales_BG3", scale), GRID)
    with pytest.raises(ValueError, match=r"Gaussians.rotations: 1 quaternions have length zero"):
        splat_additive(spoilt("rotations_BG4", 0.0), GRID)


def test_bad_arguments_are_named():
    gaussians = some()
    with pytest.raises(ValueError, match="a batch of no sample"):
        splat_additive(some(batch=0), GRID)
    with pytest.raises(ValueError, match=r"memory_bytes=2000: one tile of 4 x 4 x 4 voxels meets"):
        splat_additive(gaussians, GRID, replace(TILES, memory_bytes=2000))
    with pytest.raises(ValueError, match=r"Gaussians.opacities: shape"):
        replace(gaussians, opacities_BG=gaussians.opacities_BG.unsqueeze(2))
    with pytest.raises(ValueError, match=r"Gaussians.rotations: shape"):
        replace(gaussians, rotations_BG4=gaussians.scales_BG3)
    with pytest.raises(ValueError, match=r"Gaussians.means: shape"):
        Gaussians(**{name: value[0] for name, value in vars(gaussians).items()})
    with pytest.raises(ValueError, match=r"Gaussians.scales: torch.float32 .* one floating dtype"):
        replace(gaussians, scales_BG3=gaussians.scales_BG3.float())
    for wrong in (
        {"reach": 0.0},
        {"reach": float("nan")},
        {"boxes": "sphere"},
        {"memory_bytes": 0},
        {"backend": "cuda"},
        {"mixture": "softmax"},
    ):
        with pytest.raises(ValueError, match=f"SplatOptions.{next(iter(wrong))}="):
            SplatOptions(**wrong)
    with pytest.raises(ValueError, match="SplatGrid: voxel_size"):
        replace(FULL, voxel_size=(0.5, 0.0, 0.5))
