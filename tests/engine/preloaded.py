"""What the parent of the tests' processes imports once; the first optimizer step makes PyTorch import much more."""

import torch
from toy_training import train_in_a_process  # noqa: F401

torch.set_num_threads(1)
_weight = torch.nn.Parameter(torch.zeros(1))
_optimizer = torch.optim.AdamW([_weight])
_weight.sum().backward()
_optimizer.step()
