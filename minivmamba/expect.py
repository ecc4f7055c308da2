"""One sentence for bad input: which argument, what was expected, what came."""

from typing import Any

import torch
from torch import Tensor


def given(**arguments: Any) -> dict[str, Any]:
    """The optional arguments that were given: those that are not None."""
    return {name: value for name, value in arguments.items() if value is not None}


def expect_tensors(**arguments: object) -> None:
    """Raise TypeError for the first argument that is not a tensor.

    Without it a list or an array would fail deep inside, far from the name of the argument.
    """
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")


def expect_int(name: str, value: object, minimum: int) -> None:
    """Raise ValueError unless value is a whole number of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{name}: expected an integer of at least {minimum}, got {value!r}")


def expect_rate(name: str, value: object) -> None:
    """Raise ValueError unless value is a number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < 1.0:
        raise ValueError(f"{name}: expected a rate in [0, 1), got {value!r}")


def expect_like_weights(name: str, value: Tensor, weight: Tensor) -> None:
    """Raise unless a module with this weight can take the tensor: floating point, device, dtype.

    Autocast brings half and single precision together, but not double.

    Raises:
        TypeError: value is not floating point, or has another dtype than the weights.
        ValueError: it is on another device.
    """
    if not value.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got {value.dtype}")
    if value.device != weight.device:
        raise ValueError(f"{name}: expected device {weight.device}, got {value.device}")
    if value.dtype != weight.dtype:
        autocast = torch.is_autocast_enabled(value.device.type)
        if not autocast or torch.float64 in (value.dtype, weight.dtype):
            raise TypeError(f"{name}: expected {weight.dtype} as the model, got {value.dtype}")


def expect_positive(name: str, value: object) -> None:
    """Raise ValueError unless value is a finite number above 0."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0.0 < float(value) < float("inf"):  # type: ignore[arg-type]
        raise ValueError(f"{name}: expected a number above 0, got {value!r}")
