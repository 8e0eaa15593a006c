"""The blocks of a Swin Transformer for inference on a CPU: the results of SwinBlock at less than half its cost.

What differs from ``image_backbones.SwinBlock``, and none of it changes what is computed:

* A block goes through a picture strip by strip, a strip being a few rows of windows: from the first norm to the sum
  behind the MLP, everything stays in the cache, and nothing is so large that the C library asks the system for it.
* The products with weights take the tokens of the picture alone. The padding of the windows is one token more, whose
  query, key and value are copied to wherever windows are padded, and what the padding attends to is not computed on.
* Padding, roll and partition into windows are one gathering of rows; so is the way back.
* Only the windows that hold tokens from both ends of the rolled map get a mask; the others share one bias.
* The products are 1x1 convolutions, which oneDNN computes faster than PyTorch's linear layers.

Products may be in bfloat16 (``SwinInferenceBlock.products``). The sum that runs through the blocks and its norms stay
in the dtype of the input; scores and softmax are in float32.

Legend: B pictures, C channels, h w map, T = h * w tokens, M windows of a strip, N tokens of a window, E heads of c
channels, R tokens of a strip.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusionocc_core.layers.image_backbones import SwinBlock, shifted_window_mask

Network = TypeVar("Network", bound=nn.Module)

STRIP = 2**22
"""Most numbers that the widest intermediate of a strip shall have (8 MB in bfloat16); one row of windows at least."""


def swin_for_inference(network: Network) -> Network:
    """A copy whose Swin blocks are those of this module; the network itself where it has none.

    Args:
        network: in inference mode; not changed. The copy shares its tensors.

    Raises:
        ValueError: the network is in training mode, in which blocks are left out at random.
    """
    names = [name for name, module in network.named_modules() if type(module) is SwinBlock]
    if not names:
        return network
    if network.training:
        raise ValueError("swin_for_inference: the network is in training mode; call eval() on it first")
    changed = copy.deepcopy(network, {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())})
    for name in names:
        block = changed.get_submodule(name)
        assert isinstance(block, SwinBlock)
        changed.set_submodule(name, SwinInferenceBlock(block))
    return changed


class SwinInferenceBlock(nn.Module):
    """Window attention and an MLP, each behind a LayerNorm; no gradients."""

    def __init__(self, block: SwinBlock) -> None:
        super().__init__()
        attention = block.attn.w_msa
        self.heads: int = attention.num_heads
        self.widest: int = block.ffn.fc1.out_features
        self.window, self.shift = block.attn.window, block.attn.shift
        self.norm1, self.norm2 = block.norm1, block.norm2
        layers = {"qkv": attention.qkv, "proj": attention.proj, "fc1": block.ffn.fc1, "fc2": block.ffn.fc2}
        self.products = nn.ModuleDict({name: _as_convolution(layer) for name, layer in layers.items()})
        rows_NN: Tensor = attention.relative_position_index
        bias_NNE = attention.relative_position_bias_table.detach()[rows_NN.flatten()].unflatten(0, rows_NN.shape)
        self.bias_1ENN: Tensor
        self.register_buffer("bias_1ENN", bias_NNE.permute(2, 0, 1)[None].contiguous(), persistent=False)
        self.eval()

    @torch.no_grad()
    def forward(self, x_BhwC: Tensor) -> Tensor:
        """(B, h, w, C) to the same.

        Raises:
            ValueError: in training mode.
        """
        if self.training:
            raise ValueError("SwinInferenceBlock: in training mode; train the network that it was made from")
        _, h, w, channels = x_BhwC.shape
        strips = window_strips(h, w, self.window, self.shift, STRIP // self.widest, x_BhwC.device)
        x_BTC = x_BhwC.reshape(-1, h * w, channels)
        out_BTC = torch.empty_like(x_BTC)
        for x_TC, out_TC in zip(x_BTC, out_BTC, strict=True):
            for strip in strips:
                x_RC = x_TC.index_select(0, strip.tokens_R)
                x_RC += self._attention(self.norm1(x_RC), strip)
                x_RC += self._mlp(self.norm2(x_RC))
                out_TC.index_copy_(0, strip.tokens_R, x_RC)
        return out_BTC.view(x_BhwC.shape)

    def _attention(self, normed_RC: Tensor, strip: WindowStrip) -> Tensor:
        """What the tokens of a strip find in their windows."""
        # The padding is a token of zeros, as in the official network, which pads behind the norm.
        qkv_RC = self._product("qkv", F.pad(normed_RC.to(self._dtype), (0, 0, 0, 1)))
        rows = qkv_RC.index_select(0, strip.rows_MN.flatten()).view(*strip.rows_MN.shape, 3, self.heads, -1)
        qkv_3MENc, bias_1ENN = rows.permute(2, 0, 3, 1, 4), self.bias_1ENN.to(self._dtype)
        found = []
        if strip.inner:
            found.append(_attend(qkv_3MENc[:, : strip.inner], bias_1ENN))
        if len(strip.border_M1NN):
            found.append(_attend(qkv_3MENc[:, strip.inner :], bias_1ENN + strip.border_M1NN.to(self._dtype)))
        return self._product("proj", torch.cat(found).index_select(0, strip.place_R))

    def _mlp(self, normed_RC: Tensor) -> Tensor:
        return self._product("fc2", F.gelu(self._product("fc1", normed_RC.to(self._dtype))))

    @property
    def _dtype(self) -> torch.dtype:
        return self.products.get_parameter("qkv.weight").dtype

    def _product(self, name: str, x_RC: Tensor) -> Tensor:
        """A linear layer on rows."""
        convolved: Tensor = self.products[name](x_RC[None, None].permute(0, 3, 1, 2))
        return convolved.permute(0, 2, 3, 1).view(len(x_RC), -1)


def _attend(qkv_3MENc: Tensor, bias_MENN: Tensor) -> Tensor:
    """What the tokens of some windows find, (M * N, E * c); ``bias_MENN`` may be one for all windows."""
    query_MENc, key_MENc, value_MENc = qkv_3MENc.unbind(0)
    found_MENc = F.scaled_dot_product_attention(query_MENc, key_MENc, value_MENc, attn_mask=bias_MENN)
    return found_MENc.transpose(1, 2).flatten(0, 1).flatten(1)


def _as_convolution(layer: nn.Linear) -> nn.Conv2d:
    """The same product as a 1x1 convolution; shares the tensors."""
    with torch.device("meta"):
        convolution = nn.Conv2d(layer.in_features, layer.out_features, 1, bias=layer.bias is not None)
    convolution.weight = nn.Parameter(layer.weight.detach()[:, :, None, None], requires_grad=False)
    if layer.bias is not None:
        convolution.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    return convolution


@dataclass(frozen=True, kw_only=True)
class WindowStrip:
    """Some rows of windows of a padded and rolled map; the windows without a mask come first."""

    tokens_R: Tensor
    """int64, ascending: the tokens of the map, row by row, that lie in it."""
    rows_MN: Tensor
    """int64: which of them stands where; R is the padding."""
    place_R: Tensor
    """int64: where each of them stands in ``rows_MN``, flattened."""
    inner: int
    """Windows that need no mask."""
    border_M1NN: Tensor
    """float32, of the other windows: -100 between tokens that are not neighbours on the map, else 0."""


@lru_cache(maxsize=32)
def window_strips(
    h: int, w: int, window: int, shift: int, most_tokens: int, device: torch.device
) -> tuple[WindowStrip, ...]:
    """How a map of h by w tokens falls into windows after it is padded and rolled, as ShiftWindowAttention does it.

    Args:
        h: rows of the map.
        w: columns of the map.
        window: edge of a window, tokens.
        shift: by which the padded map is rolled; 0: not at all.
        most_tokens: of a strip, unless a single row of windows holds more.
        device: of the result.
    """
    rows, columns = -(-h // window), -(-w // window)
    at_once = max(1, most_tokens // (window**2 * columns))
    with torch.inference_mode(False), torch.no_grad():  # what is kept may be used outside of inference mode
        tokens = torch.full((rows * window, columns * window), h * w)
        tokens[:h, :w] = torch.arange(h * w).view(h, w)
        tokens = tokens.roll((-shift, -shift), dims=(0, 1)).view(rows, window, columns, window).transpose(1, 2)
        mask_MNN = torch.zeros(rows * columns, window**2, window**2)
        if shift:
            mask_MNN = shifted_window_mask(rows, columns, window, shift, mask_MNN)
        parts = zip(
            tokens.reshape(-1, window**2).split(at_once * columns), mask_MNN.split(at_once * columns), strict=True
        )
        return tuple(_strip(tokens_MN, part_MNN, h * w, device) for tokens_MN, part_MNN in parts)


def _strip(tokens_MN: Tensor, mask_MNN: Tensor, padding: int, device: torch.device) -> WindowStrip:
    masked_M = mask_MNN.flatten(1).any(dim=1)
    tokens_MN = tokens_MN[masked_M.long().argsort(stable=True)]
    tokens_R, rows_S = tokens_MN.unique(return_inverse=True)  # sorted: the padding, where there is any, comes last
    count = int((tokens_R < padding).sum())
    place_R = torch.empty(len(tokens_R), dtype=torch.long)
    place_R[rows_S.flatten()] = torch.arange(tokens_MN.numel())
    return WindowStrip(
        tokens_R=tokens_R[:count].to(device),
        rows_MN=rows_S.view(tokens_MN.shape).to(device),
        place_R=place_R[:count].to(device),
        inner=int((~masked_M).sum()),
        border_M1NN=mask_MNN[masked_M, None].to(device),
    )
