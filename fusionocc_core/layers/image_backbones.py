"""Pictures to feature maps: the Swin and the ResNet of official checkpoints, any convolutional network of timm.

All give two maps, at ``stride`` and at twice ``stride``, finest first. Legend: B pictures, C channels, H W picture
size, h w map size, N tokens of a window.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fusionocc_core.checkpoints import wants_fresh_weights
from fusionocc_core.layers.resnet import ResNetBackbone, ResNetConfig
from fusionocc_core.layers.torchvision_shim import import_timm


@dataclass(frozen=True, kw_only=True)
class SwinConfig:
    """A Swin Transformer (Liu et al., ICCV 2021); the defaults are Swin-B with windows of 12."""

    embed_channels: int = 128
    """Channels of the first stage; each further stage has twice as many."""
    depths: tuple[int, ...] = (2, 2, 18, 2)
    """Blocks a stage."""
    heads: tuple[int, ...] = (4, 8, 16, 32)
    """Attention heads a stage."""
    window: int = 12
    """Edge of the attention windows, tokens."""
    mlp_ratio: float = 4.0
    drop_path: float = 0.1
    """Stochastic depth: the rate of the last block; it grows linearly from 0 at the first."""
    checkpoint_activations: bool = True
    """Recompute each block in the backward pass: less memory, about a third more time in training."""

    def __post_init__(self) -> None:
        """Refuse stages that do not fit together."""
        if len(self.depths) != len(self.heads) or len(self.depths) < 2:
            raise ValueError(
                f"SwinConfig: depths={self.depths} and heads={self.heads} must be two or more, as many each"
            )
        for stage, heads in enumerate(self.heads):
            if self.stage_channels(stage) % heads:
                raise ValueError(
                    f"SwinConfig: {self.stage_channels(stage)} channels of stage {stage} over {heads} heads"
                )

    def stage_channels(self, stage: int) -> int:
        """Channels of a stage, counted from 0."""
        return self.embed_channels * 2**stage

    @property
    def out_channels(self) -> tuple[int, int]:
        """Channels of the two maps, finest first."""
        last = len(self.depths) - 1
        return self.stage_channels(last - 1), self.stage_channels(last)

    @property
    def stride(self) -> int:
        """Pixels a cell of the finer map."""
        return PATCH * 2 ** (len(self.depths) - 2)


@dataclass(frozen=True, kw_only=True)
class TimmBackboneConfig:
    """A convolutional network of timm by name, with fresh weights."""

    name: str
    """For example "resnet18": any timm model that gives feature maps (``timm.list_models()``)."""
    stride: int
    """Pixels a cell of the finer of the two maps: 8 or 16."""
    out_channels: tuple[int, int]
    """Channels of the two maps, finest first; checked against timm's when the network is built."""


ImageBackboneConfig = SwinConfig | ResNetConfig | TimmBackboneConfig

PATCH = 4
"""Edge of a Swin patch, pixels."""


def make_image_backbone(config: ImageBackboneConfig) -> SwinBackbone | ResNetBackbone | TimmBackbone:
    """The backbone that the configuration describes, with fresh weights."""
    if isinstance(config, SwinConfig):
        return SwinBackbone(config)
    return ResNetBackbone(config) if isinstance(config, ResNetConfig) else TimmBackbone(config)


class TimmBackbone(nn.Module):
    """Two feature maps of a timm network, at ``config.stride`` and twice that."""

    def __init__(self, config: TimmBackboneConfig) -> None:
        super().__init__()
        timm = import_timm()
        self.body = timm.create_model(config.name, pretrained=False, features_only=True)
        strides = self.body.feature_info.reduction()
        wanted = (config.stride, 2 * config.stride)
        if any(stride not in strides for stride in wanted):
            raise ValueError(
                f"TimmBackboneConfig: {config.name} has strides {strides}; stride={config.stride} needs {wanted}"
            )
        self.levels = tuple(strides.index(stride) for stride in wanted)
        channels = tuple(self.body.feature_info.channels()[level] for level in self.levels)
        if channels != config.out_channels:
            raise ValueError(
                f"TimmBackboneConfig: {config.name} gives {channels} channels, not out_channels={config.out_channels}"
            )

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Feature maps (B, C, h, w), finest first."""
        maps = self.body(images_BCHW.contiguous(memory_format=torch.channels_last))
        fine, coarse = (maps[level] for level in self.levels)
        return fine, coarse


class ShiftWindowAttention(nn.Module):
    """Multi-head attention within windows, of the map as it stands or rolled by half a window.

    The attention itself is timm's. timm's own block is not used: it rolls the map and pads it afterwards, whereas the
    official network pads first and rolls the padded map, so that the padding lands among other tokens and the results
    differ (at 512 x 1408, in every stage). As there, the padding tokens take part as keys and values, and the roll is
    kept on maps smaller than a window.
    """

    def __init__(self, channels: int, heads: int, window: int, *, shifted: bool) -> None:
        super().__init__()
        swin = import_timm("timm.models.swin_transformer")
        self.window, self.shift = window, window // 2 if shifted else 0
        self.w_msa = swin.WindowAttention(channels, num_heads=heads, window_size=window)

    def forward(self, x_BhwC: Tensor) -> Tensor:
        """Attend within windows; (B, h, w, C) to the same."""
        b, h, w, c = x_BhwC.shape
        size = self.window
        padded = F.pad(x_BhwC, (0, 0, 0, -w % size, 0, -h % size))
        rows, columns = padded.shape[1] // size, padded.shape[2] // size
        if self.shift:
            padded = padded.roll((-self.shift, -self.shift), dims=(1, 2))
        windows = padded.view(b, rows, size, columns, size, c).transpose(2, 3).reshape(-1, size * size, c)
        mask = shifted_window_mask(rows, columns, size, self.shift, x_BhwC) if self.shift else None
        windows = self.w_msa(windows, mask)
        merged = windows.view(b, rows, columns, size, size, c).transpose(2, 3).reshape(padded.shape)
        if self.shift:
            merged = merged.roll((self.shift, self.shift), dims=(1, 2))
        return merged[:, :h, :w]


def shifted_window_mask(rows: int, columns: int, window: int, shift: int, like: Tensor) -> Tensor:
    """(rows * columns, N, N): -100 between tokens of a rolled map that were not neighbours before, else 0."""

    def region(count: int) -> Tensor:
        index = torch.arange(count * window, device=like.device)
        last = count * window
        return (index >= last - window).long() + (index >= last - shift).long()

    regions = 3 * region(rows)[:, None] + region(columns)[None, :]
    regions = regions.view(rows, window, columns, window).transpose(1, 2).reshape(rows * columns, window * window)
    return (regions[:, None, :] != regions[:, :, None]).to(like.dtype) * -100.0


class SwinBlock(nn.Module):
    """Window attention and an MLP, each behind a LayerNorm and with stochastic depth."""

    def __init__(self, channels: int, heads: int, config: SwinConfig, *, shifted: bool, drop_path: float) -> None:
        super().__init__()
        layers = import_timm("timm.layers")
        self.norm1 = nn.LayerNorm(channels)
        self.attn = ShiftWindowAttention(channels, heads, config.window, shifted=shifted)
        self.norm2 = nn.LayerNorm(channels)
        self.ffn = layers.Mlp(channels, int(channels * config.mlp_ratio))
        self.drop_path = layers.DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x_BhwC: Tensor) -> Tensor:
        """(B, h, w, C) to the same."""
        x_BhwC = x_BhwC + self.drop_path(self.attn(self.norm1(x_BhwC)))
        return x_BhwC + self.drop_path(self.ffn(self.norm2(x_BhwC)))


class SwinStage(nn.Module):
    """Blocks at one resolution, and the patch merging that leads to the next (none in the last stage)."""

    def __init__(self, stage: int, config: SwinConfig, drop_path: tuple[float, ...]) -> None:
        super().__init__()
        swin = import_timm("timm.models.swin_transformer")
        channels, heads = config.stage_channels(stage), config.heads[stage]
        self.checkpoint_activations = config.checkpoint_activations
        self.blocks = nn.ModuleList(
            SwinBlock(channels, heads, config, shifted=block % 2 == 1, drop_path=rate)
            for block, rate in enumerate(drop_path)
        )
        last = stage == len(config.depths) - 1
        self.downsample = nn.Identity() if last else swin.PatchMerging(channels)

    def forward(self, x_BhwC: Tensor) -> tuple[Tensor, Tensor]:
        """The map (B, h, w, C) behind the blocks, and what the next stage takes."""
        recompute = self.checkpoint_activations and self.training and torch.is_grad_enabled()
        for block in self.blocks:
            x_BhwC = checkpoint(block, x_BhwC, use_reentrant=False) if recompute else block(x_BhwC)
        return x_BhwC, self.downsample(x_BhwC)


class SwinBackbone(nn.Module):
    """Swin Transformer whose last two stages are the feature maps, each behind a LayerNorm of its own.

    Differences from timm's network that the official checkpoint needs: the order of padding and rolling (see
    ShiftWindowAttention), and the order of the inputs of ``downsample`` (permuted once, when a checkpoint is read or
    written: models/fusionocc_official.py). ``stage_maps`` also gives the first stage, without a norm: the official
    stereo output.
    """

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        layers = import_timm("timm.layers")
        self.patch_embed = layers.PatchEmbed(
            img_size=None,
            patch_size=PATCH,
            embed_dim=config.embed_channels,
            norm_layer=nn.LayerNorm,
            output_fmt="NHWC",
            strict_img_size=False,
            dynamic_img_pad=True,
        )
        rates = torch.linspace(0, config.drop_path, sum(config.depths), device="cpu").tolist()
        starts = [sum(config.depths[:stage]) for stage in range(len(config.depths))]
        self.stages = nn.ModuleList(
            SwinStage(stage, config, tuple(rates[start : start + depth]))
            for stage, (start, depth) in enumerate(zip(starts, config.depths, strict=True))
        )
        fine, coarse = config.out_channels
        self.norm2, self.norm3 = nn.LayerNorm(fine), nn.LayerNorm(coarse)
        if wants_fresh_weights():
            self.apply(_init_linear)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Feature maps (B, C, h, w), finest first; pictures of any size, padded to whole patches with zeros."""
        maps = self.stage_maps(images_BCHW)
        return maps[-2], maps[-1]

    def stage_maps(self, images_BCHW: Tensor, *, count: int | None = None) -> list[Tensor]:
        """Maps of the first ``count`` stages (None: all), from stride 4 on; the last two behind their norms."""
        x_BhwC = self.patch_embed(images_BCHW)
        norms = {len(self.stages) - 2: self.norm2, len(self.stages) - 1: self.norm3}
        maps = []
        for number, stage in enumerate(self.stages[:count]):
            map_BhwC, x_BhwC = stage(x_BhwC)
            map_BhwC = norms[number](map_BhwC) if number in norms else map_BhwC
            maps.append(map_BhwC.permute(0, 3, 1, 2))
        return maps


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
