"""Training: one loop for a laptop and for a machine full of GPUs (lesson 12).

    config      what a run is: a small TOML file, those of the book lie in configs/
    feed        images in an order that depends on the seed and the step alone
    optimizer   AdamW with its two groups, warm-up and cosine per step
    snapshot    the whole state of a run, written so that a kill at any instant loses nothing
    log         a progress bar and a CSV file
    processes   one process or many, started by torchrun
    loop        the steps themselves
    weights     the result, as safetensors with a note of what it is

    python -m minivmamba.train digits --out runs/digits

**Randomness has no memory.** What step t draws (order, augmentation, mixing, drop path) is a
function of the seed and t. So the state of a run is its weights, its averages and a number, and a
run that was killed goes on bit for bit as if nothing had happened.
"""

from minivmamba.train.config import Config, list_configs, load_config
from minivmamba.train.loop import NonFinite, Training
from minivmamba.train.optimizer import adamw, parameter_groups, rate_at

__all__ = [
    "Config",
    "NonFinite",
    "Training",
    "adamw",
    "list_configs",
    "load_config",
    "parameter_groups",
    "rate_at",
]
