"""What the parent of the tests' processes imports once; the first optimizer step makes PyTorch import much more."""

import torch
from toy_training import train_in_a_process  # noqa: F401

import fusionocc_core.engine.session  # noqa: F401
from fusionocc_core.layers.torchvision_shim import import_timm

torch.set_num_threads(1)
import_timm()
_weight = torch.nn.Parameter(torch.zeros(1))
_optimizer = torch.optim.AdamW([_weight])
_weight.sum().backward()
_optimizer.step()
