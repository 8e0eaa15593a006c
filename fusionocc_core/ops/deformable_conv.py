"""Modulated deformable convolution: every tap of a kernel looks where it is told, with a weight of its own.

Zhu et al., "Deformable ConvNets v2" (CVPR 2019). Shape suffixes: B pictures, C O channels in and out, T = kh * kw taps
of the kernel (row by row), H W input, h w output, 2 = (dy, dx).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

BACKENDS = ("auto", "torch", "torchvision")


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
        backend: "torch" (what "auto" takes: torchvision's compiled operator is not on every platform, and its CPU
            kernel has one thread) or "torchvision".

    Returns:
        (B, O, h, w) with h = floor((H + 2 * padding - kh) / stride) + 1.

    Raises:
        ValueError: shapes that do not fit, an unknown backend, or torchvision's operator asked for where it is missing.
    """
    _check(input_BCHW, offset_BThw2, mask_BThw, weight_OCkk, stride, padding, backend)
    if backend == "torchvision":
        return _by_torchvision(input_BCHW, offset_BThw2, mask_BThw, weight_OCkk, stride, padding)
    samples_BCThw = _sample(input_BCHW, offset_BThw2, weight_OCkk.shape[2:], stride, padding)
    modulated_BJV = (samples_BCThw * mask_BThw.to(samples_BCThw.dtype).unsqueeze(1)).flatten(3).flatten(1, 2)
    out_BOV = weight_OCkk.flatten(1) @ modulated_BJV
    return out_BOV.unflatten(2, offset_BThw2.shape[2:4])


def _sample(input_BCHW: Tensor, offset_BThw2: Tensor, kernel: torch.Size, stride: int, padding: int) -> Tensor:
    """The input under each moved tap, (B, C, T, h, w)."""
    batch, taps, height, width = offset_BThw2.shape[:4]
    # Half precision has no digits for places: 1/8 pixel at column 200 of a map.
    dtype = torch.promote_types(input_BCHW.dtype, torch.float32)
    offset_BThw2 = offset_BThw2.to(dtype)
    row_h = torch.arange(height).to(offset_BThw2) * stride - padding
    column_w = torch.arange(width).to(offset_BThw2) * stride - padding
    tap_T2 = torch.cartesian_prod(torch.arange(kernel[0]), torch.arange(kernel[1])).view(taps, 2).to(offset_BThw2)
    still_hw2 = torch.stack(torch.meshgrid(row_h, column_w, indexing="ij"), dim=-1)
    place_BThw2 = offset_BThw2 + tap_T2[:, None, None] + still_hw2
    # Pixel centres to grid_sample's -1..1, which reach from edge to edge of the picture.
    grid_BThw2 = ((2 * place_BThw2 + 1) / offset_BThw2.new_tensor(input_BCHW.shape[2:]) - 1).flip(-1)
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
