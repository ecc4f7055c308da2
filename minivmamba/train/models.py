"""Models by name: the constructors of minivmamba and of minivmamba.small_models."""

from collections.abc import Callable
from typing import Any

import torch.nn as nn

import minivmamba


def build_model(name: str, classes: int, **options: Any) -> nn.Module:
    """The model that a constructor of that name makes.

    Raises:
        ValueError: there is no such constructor, or it does not take an option.
    """
    constructors = model_names()
    if name not in constructors:
        raise ValueError(f"model: expected one of {', '.join(sorted(constructors))}; got {name!r}")
    try:
        return constructors[name](classes, **options)
    except TypeError as error:
        raise ValueError(f"options: {error}") from error


def model_names() -> dict[str, Callable[..., nn.Module]]:
    """Constructor by name. Without torchvision the small models are left out."""
    try:
        from minivmamba import small_models
    except ModuleNotFoundError:
        return _constructors(minivmamba, "vmamba_")
    return _constructors(minivmamba, "vmamba_") | _constructors(small_models, "small_")


def _constructors(module: Any, prefix: str) -> dict[str, Callable[..., nn.Module]]:
    return {
        name: value
        for name, value in vars(module).items()
        if name.startswith(prefix) and callable(value)
    }
