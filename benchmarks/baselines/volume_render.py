"""Volume rendering that reads densities and scores at every place of every ray at once (RenderOcc, Pan et al., 2024).

Shape suffixes as in fusionocc_core.ops.volume_render.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fusionocc_core.ops.volume_render_rays import OFFICIAL_SHIFT, Rays, RenderConfig, box_share, place_samples


def render_everywhere(
    density_BXYZ: Tensor, semantic_BXYZK: Tensor, rays: Rays, config: RenderConfig
) -> tuple[Tensor, Tensor]:
    """Depth (R,), metres, and scores (R, K) as ops.volume_render gives them where it leaves nothing out.

    That is with RenderConfig's least_alpha, least_weight and stop_below at zero, which are ignored here, and
    depth_mode "metric". Differentiable in both volumes; autograd keeps everything that was read.
    """
    depth_R = density_BXYZ.new_zeros(len(rays))
    semantic_RK = density_BXYZ.new_zeros(len(rays), semantic_BXYZK.shape[4])
    for b in range(len(density_BXYZ)):
        mine_R = (rays.sample_R == b).nonzero().squeeze(1)
        volume = torch.cat([density_BXYZ[b, None], semantic_BXYZK[b].movedim(-1, 0)])[None]
        depth, semantic = _render(volume, rays.select(mine_R), config)
        depth_R = depth_R.index_copy(0, mine_R, depth)
        semantic_RK = semantic_RK.index_copy(0, mine_R, semantic)
    return depth_R, semantic_RK


def _render(volume_1CXYZ: Tensor, rays: Rays, config: RenderConfig) -> tuple[Tensor, Tensor]:
    places = place_samples(rays, config, volume_1CXYZ.dtype)
    official = config.align == "official"
    cell_RS3 = 2 * box_share(places.position_RS3, config).flip(-1) - 1  # grid_sample wants (z, y, x)
    beyond = "zeros" if official else "border"
    read = F.grid_sample(volume_1CXYZ, cell_RS3[None, None], padding_mode=beyond, align_corners=official)
    density_RS, score_KRS = read[0, 0, 0], read[0, 1:, 0]
    if config.opacity == "official":
        alpha_RS = 1 - (1 + torch.exp(density_RS + OFFICIAL_SHIFT)) ** -0.5
    else:
        alpha_RS = 1 - torch.exp(-density_RS * places.width_RS * config.radius)
    alpha_RS = alpha_RS * places.kept_RS
    left_RS = torch.cat([torch.ones_like(alpha_RS[:, :1]), (1 - alpha_RS).cumprod(dim=1)[:, :-1]], dim=1)
    weight_RS = alpha_RS * left_RS
    depth_R = config.radius * (weight_RS * places.distance_S).sum(dim=1)
    return depth_R, (weight_RS * score_KRS).sum(dim=2).T
