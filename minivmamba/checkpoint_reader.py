"""Weights from a file or a dict: which entry holds them, and the tensors that it describes.

No number is read before the tensor it belongs to is asked for: the optimizer of a training
checkpoint is never read.
"""

import os
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minivmamba.unpickle import Name, Note, Storage, is_size
from minivmamba.weight_files import KINDS, Archive, CheckpointError, no_data, opened, shown


def read_weights(source: str | os.PathLike | Mapping, which: str = "model") -> dict[str, Tensor]:
    """The tensors of one entry of a checkpoint, under their own names.

    Args:
        source: a file, or a state dict, bare or inside a checkpoint as torch.load gives it.
        which: the entry, "model" or "model_ema". A bare state dict, or one in the entry
            "state_dict", counts as "model".

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it holds no weights, none of this entry, or is damaged.
        TypeError: source or which is something else.
    """
    if not isinstance(which, str):
        raise TypeError(f"which: expected the name of an entry, got {type(which).__name__}")
    if not isinstance(source, Mapping | str | os.PathLike):
        raise TypeError(f"source: expected a path or a state dict, got {type(source).__name__}")
    try:
        if isinstance(source, Mapping):
            return _tensors(Archive(source, no_data), which)
        with opened(Path(source)) as archive:
            return _tensors(archive, which)
    except CheckpointError as error:
        origin = "source" if isinstance(source, Mapping) else Path(source)
        raise CheckpointError(f"{origin}: {error}") from error


# ---- entries: where in the file the weights are


def _tensors(archive: Archive, which: str) -> dict[str, Tensor]:
    entry = _entry(archive.content, which)
    tensors = {}
    for key, value in entry.items():
        if not isinstance(key, str):
            raise CheckpointError(f"expected names of weights, got the key {key!r:.80}")
        try:
            tensors[key] = value if isinstance(value, Tensor) else _tensor(archive, value)
        except CheckpointError as error:
            raise CheckpointError(f"{shown(key)}: {error}") from error
    return tensors


def _entry(content: Any, which: str) -> Mapping:
    """The dict of tensors of this name, or the content itself if it is one."""
    entries = _entries(content)
    if not entries:
        raise CheckpointError(f"expected a dict of tensors, got {_described(content)}")
    for name in (which, "state_dict") if which == "model" else (which,):
        if _count(entries.get(name)):
            return _entries(entries[name])
    if _count(entries) and which == "model":
        return entries
    if _count(entries):
        raise CheckpointError(
            f"expected an entry {which!r}, got a bare state dict; which='model' reads it"
        )
    if _is_module(entries.get(which)):
        raise CheckpointError(f"expected a state dict, got {_described(entries[which])}")
    held = [repr(shown(str(name))) for name, value in entries.items() if _count(value)]
    got = f"weights in {', '.join(held[:5])}" if held else "no weights at all"
    raise CheckpointError(f"expected weights in an entry {which!r}, got {got}")


def _entries(value: Any) -> Mapping:
    """A dict, or the entries of an object that was to be a kind of dict; else nothing."""
    if isinstance(value, Note):
        return value.entries
    return value if isinstance(value, Mapping) else {}


def _count(value: Any) -> int:
    """How many tensors are in a dict."""
    return sum(isinstance(item, Tensor) or _is_tensor(item) for item in _entries(value).values())


def _is_module(value: Any) -> bool:
    return isinstance(value, Note) and isinstance(value.state, dict) and "_modules" in value.state


def _described(value: Any) -> str:
    if _is_module(value):
        return (
            f"a whole model of class {shown(value.path)}, which only its own code can read: "
            "save its state_dict() instead"
        )
    if isinstance(value, Note):
        return f"an object of {shown(value.path)}"
    return "an empty dict" if value == {} else f"a value of type {type(value).__name__}"


# ---- tensors: what a note says of one


# The first argument is a storage or a tensor; the others add offset, size and strides.
_PLAIN = {"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"}
_WRAPPED = {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"}
_TYPED = "torch._tensor._rebuild_from_type_v2"  # (function, class, arguments, state)


def _is_tensor(value: Any) -> bool:
    """Whether a note says so, be it of a kind that is read here or not."""
    return isinstance(value, Note) and value.path.startswith(("torch._utils._rebuild_", _TYPED))


def _plain(value: Any) -> tuple:
    """Storage, offset, size and strides, out of what may be wrapped around them."""
    for _ in range(4):  # a parameter of a subclass has two wrappers; a crafted file, any number
        if not isinstance(value, Note):
            raise CheckpointError(f"expected a tensor, got {_described(value)}")
        if value.path in _PLAIN and len(value.arguments) >= 4:
            return value.arguments[:4]
        if value.path in _WRAPPED and value.arguments:
            value = value.arguments[0]
        elif value.path == _TYPED and len(value.arguments) == 4:
            function, _, arguments, _ = value.arguments
            if not isinstance(function, Name) or not isinstance(arguments, tuple):
                break
            value = Note(function.path, arguments)
        else:
            break
    raise CheckpointError(f"expected a plain tensor, got one written with {shown(value.path)}")


def _tensor(archive: Archive, note: Any) -> Tensor:
    """The tensor that a note describes, checked against what the file holds."""
    storage, offset, size, stride = _plain(note)
    if not isinstance(storage, Storage) or not _are_whole([offset], size, stride):
        raise CheckpointError("expected a storage, an offset, a size and strides of a tensor")
    dtype = KINDS.get(storage.kind)
    if dtype is None:
        raise CheckpointError(f"expected plain numbers, got a {shown(storage.kind)}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and last >= storage.size:
        raise CheckpointError(
            f"expected {last + 1} numbers for this shape, got {storage.size} in its storage"
        )
    try:
        if 0 in size:
            return torch.empty(size, dtype=dtype)
        numbers = torch.frombuffer(_bytes(archive, storage, dtype.itemsize), dtype=dtype)
        return numbers.as_strided(size, stride, offset)
    except (RuntimeError, OverflowError, TypeError) as error:
        raise CheckpointError(f"expected the shape of a tensor, got {str(size)[:60]}") from error


def _are_whole(*groups: Any) -> bool:
    """Whether offset, size and strides are tuples of whole numbers, one stride an axis."""
    if not all(isinstance(group, tuple | list) for group in groups):
        return False
    return len(groups[1]) == len(groups[2]) and all(map(is_size, chain(*groups)))


def _bytes(archive: Archive, storage: Storage, itemsize: int) -> bytearray:
    """The numbers of a storage, read once for all tensors that share them."""
    if storage.key not in archive.read:
        data = archive.data(storage)
        if len(data) != storage.size * itemsize:
            raise CheckpointError(
                f"expected {storage.size * itemsize} bytes in storage {shown(storage.key)}, "
                f"got {len(data)}: the file is damaged"
            )
        archive.read[storage.key] = bytearray(data)
    return archive.read[storage.key]
