"""What happens to a network before it is trained: copies that stay equal, and batch norms."""

from __future__ import annotations

import logging

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from fusionocc_core.engine.distributed import World

logger = logging.getLogger(__name__)


def replicate(model: nn.Module, world: World, sync_batch_norm: bool) -> nn.Module:
    """The network to call in training: itself alone, or one that shares its gradients with the other processes.

    Every weight must get a gradient in every step, also where sensors are missing: PyTorch waits for all of them.

    Args:
        model: on the world's device; its batch norms are replaced in place where they are to be synchronised.
        world: the processes.
        sync_batch_norm: batch statistics over all processes; PyTorch has this for CUDA only.
    """
    if world.size == 1:
        return model
    if sync_batch_norm and world.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    elif sync_batch_norm and world.is_main:
        logger.warning("batch statistics stay with each process: PyTorch synchronises batch norms on CUDA only")
    return DistributedDataParallel(model, gradient_as_bucket_view=True)


def freeze_batch_norms(model: nn.Module) -> None:
    """Batch norms use and keep their running statistics; their scale and shift are still trained."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
