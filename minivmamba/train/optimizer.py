"""AdamW with two groups of parameters, and the learning rate of every step.

Weight decay pulls a weight toward 0. That is meant for matrices that multiply features. A bias or a
norm has no such scale to keep small, and the scan's own parameters mean something else at 0: an
A_log of 0 is A = −1, a memory of one step length, whatever the data say.
"""

import math

import torch
import torch.nn as nn

from minivmamba.expect import expect_int
from minivmamba.train.config import Config

# The last part of a name. Position embeddings and class tokens are those of torchvision's models.
UNDECAYED = ("A_logs", "Ds", "dt_projs_bias", "pos_embedding", "class_token",
             "relative_position_bias_table")  # fmt: skip
DECAYED_BY_THE_AUTHORS = ("A_logs", "dt_projs_bias")


def parameter_groups(
    model: nn.Module, weight_decay: float = 0.05, decay: str = "intended"
) -> list[dict]:
    """Two groups for an optimizer: parameters that decay, and those that do not.

    Undecayed are the names in `UNDECAYED`, biases, and everything with one axis longer than 1, such
    as norms and layer scales. With decay="authors" A_logs and dt_projs_bias decay as well: the
    released code marks A_logs as undecayed, and its optimizer looks at names and axes only.

    Raises:
        ValueError: decay is neither "intended" nor "authors".
    """
    if decay not in ("intended", "authors"):
        raise ValueError(f"decay: expected 'intended' or 'authors', got {decay!r}")
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (decayed if _decays(name, parameter, decay) else undecayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]


def _decays(name: str, parameter: nn.Parameter, decay: str) -> bool:
    last = name.rpartition(".")[2]
    if decay == "authors" and last in DECAYED_BY_THE_AUTHORS:
        return True
    axes = sum(length > 1 for length in parameter.shape)
    return axes > 1 and last not in UNDECAYED and not last.endswith("bias")


def adamw(model: nn.Module, config: Config) -> torch.optim.AdamW:
    """AdamW, β = (0.9, 0.999), ε = 1e-8; the loop sets the learning rate before every step."""
    groups = parameter_groups(model, config.weight_decay, config.decay)
    return torch.optim.AdamW(groups, lr=config.rate, betas=(0.9, 0.999), eps=1e-8)


def rate_at(step: int, steps: int, warmup: int, config: Config) -> float:
    """The learning rate of step 0 … steps − 1: a straight line up, then half a cosine down.

    Raises ValueError if there is no such step.
    """
    expect_int("step", step, minimum=0)
    if step >= steps:
        raise ValueError(f"step: expected less than {steps}, got {step}")
    scale = config.batch / config.rate_batch if config.rate_batch else 1.0
    if step < warmup:
        low, high, share = config.first_rate, config.rate, step / warmup
    else:
        turned = math.pi * (step - warmup) / max(steps - warmup, 1)
        low, high, share = config.last_rate, config.rate, (1 + math.cos(turned)) / 2
    return scale * (low + (high - low) * share)
