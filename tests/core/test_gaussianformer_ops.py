"""Operators of GaussianFormer against tensors of the official ones, and against their readable forms."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fusionocc_core.ops.deformable_aggregate import deformable_aggregate
from fusionocc_core.ops.deformable_conv import ROWS_PAY_FROM, deformable_conv2d, torchvision_operator_works
from fusionocc_core.ops.pixel_rays import points_along_rays, project_points
from fusionocc_core.ops.point_sampling import farthest_points, inverse_cdf_bins


@pytest.fixture(scope="module")
def misc(shared):
    with np.load(shared / "goldens" / "gaussianformer" / "ops_misc.npz") as arrays:
        return {name: torch.from_numpy(np.array(arrays[name])) for name in arrays.files}


def test_deformable_convolution_of_the_official_code(misc):
    told = misc["dcn.offset_conv_out"]
    offset = torch.cat(told.chunk(3, dim=1)[:2], dim=1).unflatten(1, (9, 2)).movedim(2, -1)
    mask = told.chunk(3, dim=1)[2].sigmoid()
    ours = deformable_conv2d(misc["dcn.x"], offset, mask, misc["dcn.w"])
    torch.testing.assert_close(ours, misc["dcn.out"], rtol=0, atol=1e-5)


def drawn_convolution(dtype, *, height=5, width=7, stride=2):
    torch.manual_seed(3)
    h, w = (height - 1) // stride + 1, (width - 1) // stride + 1
    tensors = (
        torch.randn(2, 3, height, width, dtype=dtype),
        torch.randn(2, 9, h, w, 2, dtype=dtype) * 2,
        torch.rand(2, 9, h, w, dtype=dtype),
        torch.randn(4, 3, 3, 3, dtype=dtype),
    )
    return [tensor.requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("backend", ["torch", "rows"])
def test_deformable_convolution_tap_by_tap(backend):
    """Written out, with offsets of whole pixels, some of which lead out of the picture."""
    x, offset, mask, weight = (tensor.detach() for tensor in drawn_convolution(torch.float32))
    offset = offset.round()
    expected = torch.zeros(2, 4, 3, 4)
    for b, t, i, j in np.ndindex(2, 9, 3, 4):
        row = int(2 * i - 1 + t // 3 + offset[b, t, i, j, 0])
        column = int(2 * j - 1 + t % 3 + offset[b, t, i, j, 1])
        if 0 <= row < 5 and 0 <= column < 7:
            expected[b, :, i, j] += mask[b, t, i, j] * weight[:, :, t // 3, t % 3] @ x[b, :, row, column]
    ours = deformable_conv2d(x, offset, mask, weight, stride=2, backend=backend)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    still = deformable_conv2d(x, torch.zeros_like(offset), torch.ones_like(mask), weight, stride=2, backend=backend)
    torch.testing.assert_close(still, F.conv2d(x, weight, stride=2, padding=1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["torch", "rows"])
def test_gradients_of_the_deformable_convolution(backend):
    tensors = drawn_convolution(torch.float64)
    assert torch.autograd.gradcheck(lambda *t: deformable_conv2d(*t, stride=2, backend=backend), tensors)


@pytest.mark.parametrize(("size", "dtype"), [((5, 7), torch.float32), ((1, 1), torch.float32), ((8, 6), torch.float64)])
def test_rows_of_the_deformable_convolution_agree_forward_and_backward(size, dtype):
    """Places up to three pixels outside of the picture among them."""
    draw = torch.Generator().manual_seed(4)
    taps = (2, 9, *size)
    shapes = ((2, 3, *size), (*taps, 2), taps, (4, 3, 3, 3))
    tensors = [torch.randn(shape, generator=draw, dtype=dtype) for shape in shapes]
    tensors[1] = 3 * tensors[1]
    for tensor in tensors:
        tensor.requires_grad_()
    plain, rows = (deformable_conv2d(*tensors, backend=backend) for backend in ("torch", "rows"))
    tolerance = 1e-5 if dtype is torch.float32 else 1e-12
    torch.testing.assert_close(rows, plain, rtol=tolerance, atol=tolerance)
    upstream = torch.randn(plain.shape, generator=draw, dtype=dtype)
    for ours, reference in zip(*(torch.autograd.grad(out, tensors, upstream) for out in (rows, plain)), strict=True):
        torch.testing.assert_close(ours, reference, rtol=10 * tolerance, atol=10 * tolerance)


def test_the_deformable_convolution_takes_rows_where_they_pay():
    draw = torch.Generator().manual_seed(4)
    shapes = ((2, ROWS_PAY_FROM, 3, 4), (2, 9, 3, 4, 2), (2, 9, 3, 4), (3, ROWS_PAY_FROM, 3, 3))
    x, offset, mask, weight = (torch.randn(shape, generator=draw) for shape in shapes)
    x = x.contiguous(memory_format=torch.channels_last)

    def backend(*tensors):
        [plain, rows] = (deformable_conv2d(*tensors, backend=name) for name in ("torch", "rows"))
        assert not torch.equal(plain, rows)  # sums in another order
        taken = [
            name for name, out in (("torch", plain), ("rows", rows)) if torch.equal(deformable_conv2d(*tensors), out)
        ]
        return taken

    assert backend(x, offset, mask, weight) == ["rows"]
    assert backend(x.contiguous(), offset, mask, weight) == ["torch"]
    narrow = x[:, 1:].contiguous(memory_format=torch.channels_last)
    assert backend(narrow, offset, mask, weight[:, 1:]) == ["torch"]
    weight.requires_grad_()
    assert backend(x, offset, mask, weight) == ["torch"]
    with torch.inference_mode():
        assert backend(x, offset, mask, weight) == ["rows"]
        assert backend(*(tensor.bfloat16() for tensor in (x, offset, mask, weight))) == ["torch"]


@pytest.mark.parametrize("backend", ["torch", "rows"])
def test_the_deformable_convolution_of_what_is_not_finite_is_not_finite(backend):
    x, offset, mask, weight = (tensor.detach() for tensor in drawn_convolution(torch.float32))
    offset[0, 4, 1, 2] = torch.nan
    out = deformable_conv2d(x, offset, mask, weight, stride=2, backend=backend)
    wrong = torch.zeros_like(out, dtype=torch.bool)
    wrong[0, :, 1, 2] = True
    assert torch.equal(out.isfinite(), ~wrong)


def test_torchvisions_deformable_convolution_agrees_or_is_refused():
    tensors = drawn_convolution(torch.float32)
    if not torchvision_operator_works():
        with pytest.raises(ValueError, match=r"backend='torchvision'.*use backend='torch'"):
            deformable_conv2d(*tensors, stride=2, backend="torchvision")
        return
    results = [deformable_conv2d(*tensors, stride=2, backend=backend) for backend in ("torch", "torchvision")]
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)
    upstream = torch.randn_like(results[0])
    for ours, theirs in zip(*(torch.autograd.grad(r, tensors, upstream) for r in results), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backend": "cuda"}, "backend='cuda'"),
        ({"stride": 0}, "stride=0"),
        ({"stride": 1}, r"offset .*; expected \(2, 9, 5, 7, 2\)"),
        ({"padding": 0, "stride": 9}, r"expected \(2, 9, 1, 1, 2\)"),
    ],
)
def test_bad_arguments_of_the_deformable_convolution(change, message):
    with pytest.raises(ValueError, match=message):
        deformable_conv2d(*drawn_convolution(torch.float32), **{"stride": 2, **change})


@pytest.mark.parametrize("backend", ["visible", "dense"])
def test_aggregation_of_the_official_operator(misc, backend):
    maps = [misc[f"daf.feat{level}"].clone().requires_grad_() for level in range(3)]
    place = misc["daf.loc"].clone().requires_grad_()  # (B, P, N, 2): every point is a Gaussian with one point
    weights = misc["daf.weights"].clone().requires_grad_()  # (B, P, N, L, M)
    inside = ((place > 0) & (place < 1)).all(dim=-1)
    ours = deformable_aggregate(
        maps,
        place.movedim(2, 1).unsqueeze(3),
        inside.movedim(2, 1).unsqueeze(3),
        weights.movedim(2, 1).unsqueeze(3),
        backend,
    )
    torch.testing.assert_close(ours, misc["daf.out"], rtol=0, atol=1e-5)
    grads = torch.autograd.grad(ours, [place, weights, *maps], misc["daf.gradout"])
    torch.testing.assert_close(grads[0], misc["daf.grad_loc"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(grads[1], misc["daf.grad_weights"], rtol=1e-3, atol=1e-5)
    cells = torch.cat([grad.flatten(3).movedim(2, 3) for grad in grads[2:]], dim=2)
    torch.testing.assert_close(cells, misc["daf.grad_feat"], rtol=1e-3, atol=1e-5)


def drawn_aggregation(dtype=torch.float64, *, seen=0.4):
    torch.manual_seed(5)
    maps = [torch.randn(2, 3, 8, h, w, dtype=dtype) for h, w in ((4, 6), (2, 3))]
    points = torch.rand(2, 3, 5, 4, 2, dtype=dtype) * 1.4 - 0.2
    visible = torch.rand(2, 3, 5, 4) < seen
    weights = torch.randn(2, 3, 5, 4, 2, 2, dtype=dtype)
    return maps, points, visible, weights


@pytest.mark.parametrize("seen", [0.0, 0.4, 1.0])
def test_gathering_what_is_visible_equals_sampling_all(seen):
    maps, points, visible, weights = drawn_aggregation(seen=seen)
    tensors = [tensor.requires_grad_() for tensor in (*maps, points, weights)]
    results = [deformable_aggregate(maps, points, visible, weights, backend) for backend in ("visible", "dense")]
    torch.testing.assert_close(*results)
    upstream = torch.randn_like(results[0])
    pairs = zip(*(torch.autograd.grad(r, tensors, upstream, allow_unused=True) for r in results), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs)


def test_what_is_not_visible_does_not_count():
    maps, points, visible, weights = drawn_aggregation()
    expected = deformable_aggregate(maps, points, visible, weights)
    points = points.where(visible[..., None], 1e30)
    weights = weights.where(visible[..., None, None], 1e30)
    assert torch.equal(deformable_aggregate(maps, points, visible, weights), expected)
    assert not deformable_aggregate(maps, points, torch.zeros_like(visible), weights).any()


def test_bad_arguments_of_the_aggregation():
    maps, points, visible, weights = drawn_aggregation()
    for arguments, message in (
        (([], points, visible, weights), "expected one level or more"),
        ((maps, points[..., :1], visible, weights), "points .* expected"),
        ((maps, points, visible.float(), weights), "bool"),
        ((maps[:1], points, visible, weights), "beside 1 maps"),
        ((maps, points, visible, weights.repeat(1, 1, 1, 1, 1, 3)[..., :5]), "no multiple of the 5 groups"),
        ((maps, points, visible, weights, "fast"), "backend='fast'"),
    ):
        with pytest.raises(ValueError, match=message):
            deformable_aggregate(*arguments)


def test_farthest_points_of_the_official_operator(misc):
    assert torch.equal(farthest_points(misc["fps.x"], 50), misc["fps.idx"])


def test_farthest_points_spread_and_stop_at_the_last():
    line = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [10, 0, 0]])
    assert farthest_points(line, 4).tolist() == [0, 3, 2, 1]
    for count in (0, 5):
        with pytest.raises(ValueError, match=f"count={count} "):
            farthest_points(line, count)


def test_bins_are_drawn_with_their_probabilities():
    probability = torch.tensor([0.0, 0.5, 0.25, 0.25, 0.0])
    uniform = (torch.arange(1000) + 0.5) / 1000
    bins = inverse_cdf_bins(probability.expand(1000, 5), uniform)
    assert torch.bincount(bins, minlength=5).tolist() == [0, 500, 250, 250, 0]
    assert int(inverse_cdf_bins(torch.zeros(5), torch.tensor(0.5))) == 4  # nothing to draw from: the last


def test_points_along_rays_are_seen_where_they_come_from():
    torch.manual_seed(0)
    projection = torch.eye(4).repeat(1, 2, 1, 1)
    projection[:, :, :3, :3] = torch.tensor([[40.0, 0, 30], [0, 50, 20], [0, 0, 1]])
    projection[:, 1, :3, 3] = torch.tensor([3.0, -2, 1.5])
    points = points_along_rays(projection, (2.0, 9.0), (40, 60), (4, 5))
    for camera in (0, 1):
        uv, inside = project_points(points[:, camera].flatten(1, 3), projection, (40, 60))
        assert inside[0, camera].all()
        seen = uv[0, camera].unflatten(0, (4, 5, 2))
        torch.testing.assert_close(seen[:, 2, :, 0], torch.full((4, 2), 0.5))
        torch.testing.assert_close(seen[1, :, :, 1], torch.full((5, 2), 1.5 / 4))
    behind = torch.tensor([[[0.0, 0, -1], [0, 0, 0]]])
    assert not project_points(behind, projection[:, :1], (40, 60))[1].any()
