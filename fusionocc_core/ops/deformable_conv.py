"""Modulated deformable convolution: every tap of a kernel looks where it is told, with a weight of its own.

Zhu et al., "Deformable ConvNets v2" (CVPR 2019). Shape suffixes: B pictures, C O channels in and out, T = kh * kw taps
of the kernel (row by row), H W input, h w output, 2 = (dy, dx), q the 4 pixels around a place, V pixels of a picture,
S = h * w * T, J = T * C.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fusionocc_core.ops.pull_lift import two_cells

BACKENDS = ("auto", "torch", "rows", "torchvision")
ROWS_PAY_FROM = 256
"""Channels; with fewer the tables of rows cost more than they save."""


def deformable_conv2d(
    input_BCHW: Tensor,
    offset_BThw2: Tensor,
    mask_BThw: Tensor,
    weight_OCkk: Tensor,
    *,
    stride: int = 1,
    padding: int = 1,
    backend: str = "auto",
) -> Tensor:
    """Convolution whose taps are moved by ``offset`` and scaled by ``mask``, differentiable in all four tensors.

    What lies between pixels is interpolated linearly along both axes; what lies outside the picture counts as zero.
    With offsets of zero and a mask of one it is an ordinary convolution without bias.

    Args:
        input_BCHW: what is convolved.
        offset_BThw2: how far each tap of each output pixel is moved, pixels of the input, (dy, dx).
        mask_BThw: what each tap is multiplied with.
        weight_OCkk: the kernel.
        stride: pixels of the input a pixel of the output.
        padding: zeros around the picture.
        backend: "torch", the plain form. "rows": a pixel's channels are a row, and the rows around a tap are weighted
            and added in one step; "auto" takes it on a CPU for wide inputs with their channels last in memory where no
            gradients are wanted, and "torch" elsewhere. "torchvision": its compiled operator, which is not on every
            platform and has one thread on a CPU.

    Returns:
        (B, O, h, w) with h = floor((H + 2 * padding - kh) / stride) + 1. Of "rows" with its channels last in memory.

    Raises:
        ValueError: shapes that do not fit, an unknown backend, or torchvision's operator asked for where it is missing.
    """
    _check(input_BCHW, offset_BThw2, mask_BThw, weight_OCkk, stride, padding, backend)
    if backend == "torchvision":
        return _by_torchvision(input_BCHW, offset_BThw2, mask_BThw, weight_OCkk, stride, padding)
    if backend == "rows" or (backend == "auto" and _rows_pay(input_BCHW, offset_BThw2, mask_BThw, weight_OCkk)):
        return _by_rows(input_BCHW, offset_BThw2, mask_BThw, weight_OCkk, stride, padding)
    samples_BCThw = _sample(input_BCHW, offset_BThw2, weight_OCkk.shape[2:], stride, padding)
    modulated_BJV = (samples_BCThw * mask_BThw.to(samples_BCThw.dtype).unsqueeze(1)).flatten(3).flatten(1, 2)
    out_BOV = weight_OCkk.flatten(1) @ modulated_BJV
    return out_BOV.unflatten(2, offset_BThw2.shape[2:4])


def _places(offset_BThw2: Tensor, dtype: torch.dtype, kernel: torch.Size, stride: int, padding: int) -> Tensor:
    """Where each moved tap looks, (B, T, h, w, 2): row and column of the input."""
    _, taps, height, width = offset_BThw2.shape[:4]
    # Half precision has no digits for places: 1/8 pixel at column 200 of a map.
    offset_BThw2 = offset_BThw2.to(torch.promote_types(dtype, torch.float32))
    row_h = torch.arange(height).to(offset_BThw2) * stride - padding
    column_w = torch.arange(width).to(offset_BThw2) * stride - padding
    tap_T2 = torch.cartesian_prod(torch.arange(kernel[0]), torch.arange(kernel[1])).view(taps, 2).to(offset_BThw2)
    still_hw2 = torch.stack(torch.meshgrid(row_h, column_w, indexing="ij"), dim=-1)
    return offset_BThw2 + tap_T2[:, None, None] + still_hw2


def _rows_pay(input_BCHW: Tensor, *others: Tensor) -> bool:
    tensors = (input_BCHW, *others)
    wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    # Tables of rows become a loop where a graph is recorded, and half precision has no digits for their weights.
    plain = all(tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.float64) for tensor in tensors)
    recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()
    wide = input_BCHW.shape[1] >= ROWS_PAY_FROM and input_BCHW.is_contiguous(memory_format=torch.channels_last)
    return plain and wide and not wanted and not recorded


def _by_rows(
    input_BCHW: Tensor, offset_BThw2: Tensor, mask_BThw: Tensor, weight_OCkk: Tensor, stride: int, padding: int
) -> Tensor:
    size, (taps, h, w) = input_BCHW.shape[2:], mask_BThw.shape[1:]
    place_BThw2 = _places(offset_BThw2, input_BCHW.dtype, weight_OCkk.shape[2:], stride, padding)
    place_BhwT2 = place_BThw2.permute(0, 2, 3, 1, 4)
    # Of the pixels before and after a place, (B, h, w, T, 2) of each axis.
    rows, of_rows = (torch.stack(parts, dim=-1) for parts in two_cells(place_BhwT2[..., 0], size[0]))
    columns, of_columns = (torch.stack(parts, dim=-1) for parts in two_cells(place_BhwT2[..., 1], size[1]))
    row_BhwTq = (rows[..., :, None] * size[1] + columns[..., None, :]).flatten(-2)
    counts_BhwTq = (of_rows[..., :, None] * of_columns[..., None, :]).flatten(-2)
    counts_BhwTq = (counts_BhwTq * mask_BThw.permute(0, 2, 3, 1)[..., None]).to(input_BCHW.dtype)
    weight_JO = weight_OCkk.permute(2, 3, 1, 0).flatten(0, 2)
    out_BVO = []
    # A picture at a time: what its taps see is the largest table by far, and fits a cache better.
    for picture_CHW, row_hwTq, counts_hwTq in zip(input_BCHW, row_BhwTq, counts_BhwTq, strict=True):
        pixels_VC = picture_CHW.permute(1, 2, 0).flatten(0, 1)
        seen_SC = F.embedding_bag(
            row_hwTq.reshape(-1, 4), pixels_VC, mode="sum", per_sample_weights=counts_hwTq.reshape(-1, 4)
        )
        out_BVO.append(seen_SC.view(h * w, taps * len(picture_CHW)) @ weight_JO)
    return torch.stack(out_BVO).unflatten(1, (h, w)).permute(0, 3, 1, 2)


def _sample(input_BCHW: Tensor, offset_BThw2: Tensor, kernel: torch.Size, stride: int, padding: int) -> Tensor:
    """The input under each moved tap, (B, C, T, h, w)."""
    batch, taps, height, width = offset_BThw2.shape[:4]
    dtype = torch.promote_types(input_BCHW.dtype, torch.float32)
    place_BThw2 = _places(offset_BThw2, dtype, kernel, stride, padding)
    # Pixel centres to grid_sample's -1..1, which reach from edge to edge of the picture.
    grid_BThw2 = ((2 * place_BThw2 + 1) / place_BThw2.new_tensor(input_BCHW.shape[2:]) - 1).flip(-1)
    samples = F.grid_sample(input_BCHW.to(dtype), grid_BThw2.flatten(1, 2), padding_mode="zeros", align_corners=False)
    return samples.to(input_BCHW.dtype).view(batch, -1, taps, height, width)


def torchvision_operator_works() -> bool:
    """Whether torchvision is installed and its compiled operators fit this torch."""
    if hasattr(torch.ops.torchvision, "deform_conv2d"):
        return True
    spec = importlib.util.find_spec("torchvision")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for library in sorted(Path(folder).glob("_C*.so")):
            try:
                torch.ops.load_library(str(library))
            except OSError:  # linked to libraries that this torch does not bring
                continue
            return hasattr(torch.ops.torchvision, "deform_conv2d")
    return False


def _by_torchvision(
    input_BCHW: Tensor, offset_BThw2: Tensor, mask_BThw: Tensor, weight_OCkk: Tensor, stride: int, padding: int
) -> Tensor:
    if not torchvision_operator_works():
        raise ValueError(
            "deformable_conv2d: backend='torchvision': its compiled operators are not installed or do not fit torch "
            f"{torch.__version__}; use backend='torch'"
        )
    dtype, bias = input_BCHW.dtype, input_BCHW.new_zeros(len(weight_OCkk))
    offset = offset_BThw2.movedim(-1, 2).flatten(1, 2).to(dtype).contiguous()
    mask = mask_BThw.to(dtype).contiguous()
    sizes = (stride, stride, padding, padding, 1, 1)
    out: Tensor = torch.ops.torchvision.deform_conv2d(
        input_BCHW.contiguous(), weight_OCkk, offset, mask, bias, *sizes, 1, 1, True
    )
    return out


def _check(
    input_BCHW: Tensor,
    offset_BThw2: Tensor,
    mask_BThw: Tensor,
    weight_OCkk: Tensor,
    stride: int,
    padding: int,
    backend: str,
) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"deformable_conv2d: backend={backend!r}; expected one of {BACKENDS}")
    if stride < 1 or padding < 0:
        raise ValueError(f"deformable_conv2d: stride={stride} must be positive and padding={padding} not negative")
    if input_BCHW.ndim != 4 or weight_OCkk.ndim != 4 or weight_OCkk.shape[1] != input_BCHW.shape[1]:
        raise ValueError(
            f"deformable_conv2d: input {tuple(input_BCHW.shape)} and weight {tuple(weight_OCkk.shape)}; expected "
            "(B, C, H, W) and (O, C, kh, kw)"
        )
    kernel = weight_OCkk.shape[2:]
    h, w = ((n + 2 * padding - k) // stride + 1 for n, k in zip(input_BCHW.shape[2:], kernel, strict=True))
    expected = (len(input_BCHW), kernel[0] * kernel[1], h, w)
    if min(h, w) < 1:
        raise ValueError(f"deformable_conv2d: kernel {tuple(kernel)} is larger than the padded {input_BCHW.shape[2:]}")
    if tuple(offset_BThw2.shape) != (*expected, 2) or tuple(mask_BThw.shape) != expected:
        raise ValueError(
            f"deformable_conv2d: offset {tuple(offset_BThw2.shape)} and mask {tuple(mask_BThw.shape)}; expected "
            f"{(*expected, 2)} and {expected}"
        )
