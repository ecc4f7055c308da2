"""The result of a run: weights in a safetensors file that says what they are."""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from minivmamba.train.models import build_model
from minivmamba.train.snapshot import write_whole

NOTE = "minivmamba"  # the entry of the file's metadata that holds the note, as JSON


def save_weights(
    model: nn.Module, path: Path, note: dict[str, Any], dtype: torch.dtype | None = None
) -> None:
    """Write a model's parameters and buffers, with a note of what they are.

    Args:
        model: any module.
        path: the file; it is replaced only by a complete one.
        note: at least "model", "classes" and "options", as in a `Config`.
        dtype: floating-point tensors are stored in it; None keeps their own.
    """
    state = {name: _stored(value, dtype) for name, value in model.state_dict().items()}
    data = save(state, {NOTE: json.dumps(note)})
    write_whole(path, lambda file: file.write(data))


def _stored(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    value = value.detach().cpu().contiguous()
    return value.to(dtype) if dtype is not None and value.is_floating_point() else value


def is_from_training(path: str | Path) -> bool:
    """Whether this is a file of `save_weights`; FileNotFoundError if there is none."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"weights: expected a file, got {str(path)!r}")
    try:
        with safe_open(path, "pt") as file:
            return NOTE in (file.metadata() or {})
    except SafetensorError:
        return False


def load_weights(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """The model of a file of `save_weights`, in float32 and evaluation mode, and its note.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no file of `save_weights`, or its weights do not fit its model.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights: expected a file, got {str(path)!r}")
    try:
        with safe_open(path, "pt") as file:
            note = json.loads((file.metadata() or {})[NOTE])
            names = list(file.keys())
            state = {name: file.get_tensor(name) for name in names}
        model = build_model(note["model"], note["classes"], **note["options"])
        model.load_state_dict({name: _single(value) for name, value in state.items()})
    except (SafetensorError, KeyError, json.JSONDecodeError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"weights: expected a file that minivmamba.train wrote, got {str(path)!r}: {error}"
        ) from error
    return model.eval(), note


def start_from(model: nn.Module, path: str | Path) -> list[str]:
    """Take the weights of another run of the same model, except a classifier of another size.

    Returns:
        The names that were left as they are.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds another model, or it is no file of `save_weights`.
    """
    other, note = load_weights(path)
    own, found = model.state_dict(), other.state_dict()
    left = [name for name in own if name in found and own[name].shape != found[name].shape]
    if own.keys() != found.keys() or any(not _of_a_head(name) for name in left):
        raise ValueError(
            f"start: expected weights of {type(model).__name__} of the same widths, "
            f"got those of {note['model']} in {str(path)!r}"
        )
    model.load_state_dict({name: own[name] if name in left else found[name] for name in own})
    return left


def _of_a_head(name: str) -> bool:
    return "head" in name or "classifier" in name


def _single(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value
