"""Weights from files and to files: `load_checkpoint`, `save_checkpoint` (lesson 11).

A file of released weights is a training checkpoint: beside the weights stand an optimizer and a
configuration of a class that only the authors' code has. The way of the weights:

    unpickle → weight_files → checkpoint_reader     tensors, without running anything in the file
    checkpoint_names                                what the releases call them
    here                                            all compared with a model, then copied
"""

import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

from minivmamba.checkpoint_names import (
    HEAD,
    common_prefix,
    constructor_of,
    first_name,
    newest_name,
    num_classes_of,
    same_shape,
)
from minivmamba.checkpoint_reader import read_weights
from minivmamba.stages import StagedModel
from minivmamba.weight_files import CheckpointError, shown

__all__ = [
    "CheckpointError",
    "LoadReport",
    "constructor_of",
    "load_checkpoint",
    "num_classes_of",
    "read_checkpoint",
    "save_checkpoint",
]

Source = str | os.PathLike | Mapping[str, object]


@dataclass(frozen=True)
class LoadReport:
    """What `load_checkpoint` did; print it.

    Attributes:
        loaded: number of tensors copied into the model.
        left_out: names in the file that were not used: its classifier, with head=False.
        kept: names in the model that kept their values: its classifier, with head=False.
        renamed: how the file names its weights.
        source: where they came from.
        not_finite: names in the model that now hold NaN or infinity.
    """

    loaded: int
    left_out: tuple[str, ...]
    kept: tuple[str, ...]
    renamed: str
    source: str
    not_finite: tuple[str, ...]

    def __str__(self) -> str:
        text = f"loaded {self.loaded} tensors from {self.source} ({self.renamed})"
        if self.left_out:
            text += f"; left out: {_first(self.left_out)}"
        if self.kept:
            text += f"; unchanged in the model: {_first(self.kept)}"
        if self.not_finite:
            text += f"; NaN or infinity in {len(self.not_finite)}: {_first(self.not_finite)}"
        return text


def load_checkpoint(
    model: StagedModel, source: Source, *, which: str = "model", head: bool = True
) -> LoadReport:
    """Copy weights into a model: all of them, or none and an error.

    Args:
        model: a VSSM or VSSMv2, on any device and of any floating-point dtype; the weights are
            converted.
        source: a file of torch.save or safetensors, told apart by content, or a state dict. Names
            of the first and of the newest release are understood.
        which: the entry to read, "model" or "model_ema"; a bare state dict counts as "model".
        head: False leaves out the classifier, of any number of classes, in the file and in the
            model.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file holds no weights, or others than the model's; the message names
            them and, where it can, the constructor to use.
        TypeError: an argument is of another type.
        ValueError: the model is on the meta device and has no memory to copy to.
    """
    _expect_model(model)
    weights = read_weights(source, which)
    origin = f"{which!r} of a dict" if isinstance(source, Mapping) else str(Path(source))
    state = model.state_dict()
    names = _Names.of(weights, state, origin)
    used = {new: key for new, key in names.ours.items() if head or new not in HEAD}
    given = {new: key for new, key in names.theirs.items() if head or new not in HEAD}
    if problems := _misfits(weights, state, names, HEAD if not head else ()):
        only_head = head and not _misfits(weights, state, names, HEAD)
        hint = "; head=False leaves the classifier out" if only_head else ""
        raise CheckpointError(f"{origin}: {_advice(weights, state)}{problems}{hint}")
    copies = [(state[key], _fitting(weights[given[new]], state[key])) for new, key in used.items()]
    with torch.no_grad():
        for target, value in copies:
            target.copy_(value)
    return LoadReport(
        loaded=len(copies),
        left_out=tuple(key for new, key in names.theirs.items() if new not in given),
        kept=tuple(key for new, key in names.ours.items() if new not in used),
        renamed=names.scheme,
        source=origin,
        not_finite=tuple(key for key in used.values() if not state[key].isfinite().all()),
    )


def read_checkpoint(source: Source, which: str = "model") -> dict[str, Tensor]:
    """The weights in a file, under its own names without those of wrappers ("module.").

    Arguments and errors: `load_checkpoint`.
    """
    weights = read_weights(source, which)
    prefix = common_prefix(weights)
    return {key[len(prefix) :]: tensor for key, tensor in weights.items()}


def save_checkpoint(model: StagedModel, path: str | os.PathLike) -> None:
    """Write the weights as safetensors, under the model's own names.

    The file appears whole or not at all, and replaces one that is there. Its metadata name the
    constructor, if there is one, the number of classes and the version of this package.

    Raises:
        TypeError: model is not a VSSM or VSSMv2.
        ValueError: it is on the meta device.
        ModuleNotFoundError: safetensors is missing.
        OSError: the file cannot be written there.
    """
    _expect_model(model)
    try:
        from safetensors.torch import save
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "save_checkpoint needs safetensors: pip install safetensors; "
            "torch.save(model.state_dict(), path) works without it"
        ) from error
    # A copy of each: safetensors refuses tensors that share memory.
    state = {
        key: tensor.detach().cpu().contiguous().clone()
        for key, tensor in model.state_dict().items()
    }
    notes = {
        "format": "pt",  # what other libraries look for
        "constructor": constructor_of(state) or "",
        "num_classes": str(model.num_classes),
        "minivmamba": _version(),
    }
    _write(Path(path), save(state, notes))


# ---- comparing


@dataclass(frozen=True)
class _Names:
    """Newest names → names in the file and in the model."""

    theirs: dict[str, str]
    ours: dict[str, str]
    prefix: str
    first: bool  # the file has names of the first release

    @classmethod
    def of(cls, weights: Iterable[str], state: Iterable[str], origin: str) -> "_Names":
        keys = list(weights)
        prefix = common_prefix(keys)
        theirs: dict[str, str] = {}
        for key in keys:
            new = newest_name(key[len(prefix) :])
            if new in theirs:
                raise CheckpointError(
                    f"{origin}: expected one name for each weight, "
                    f"got {shown(theirs[new])} and {shown(key)}"
                )
            theirs[new] = key
        first = any(newest_name(key[len(prefix) :]) != key[len(prefix) :] for key in keys)
        return cls(theirs, {newest_name(key): key for key in state}, prefix, first)

    @property
    def scheme(self) -> str:
        scheme = "names of the first release" if self.first else "newest names"
        return f"{scheme}, each after {self.prefix!r}" if self.prefix else scheme

    def in_file(self, new: str) -> str:
        """What the file would call a weight that it lacks."""
        ours = self.ours[new]
        name = first_name(new) if self.first and ours != new else new
        return self.prefix + name


def _misfits(
    weights: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    names: _Names,
    leave_out: Iterable[str],
) -> str:
    """What does not fit, in the names of the file; "" if everything does."""
    used = {new: key for new, key in names.ours.items() if new not in leave_out}
    given = {new: key for new, key in names.theirs.items() if new not in leave_out}
    missing = [names.in_file(new) for new in used if new not in given]
    unexpected = [key for new, key in given.items() if new not in used]
    misshapen, wrong = [], []
    for new in (new for new in used if new in given):
        value, target = weights[given[new]], state[used[new]]
        got, expected = tuple(value.shape), tuple(target.shape)
        if not same_shape(got, expected):
            misshapen.append(f"{given[new]} {str(got)[:60]} where the model has {expected}")
        if not value.is_floating_point() or value.layout != torch.strided or value.is_meta:
            wrong.append(f"{given[new]} {_kind(value)}")
    groups = {
        "missing": missing,
        "unexpected": unexpected,
        "of another shape": misshapen,
        "without floating-point numbers": wrong,
    }
    return "; ".join(
        f"{len(group)} {kind}: {_first(group)}" for kind, group in groups.items() if group
    )


def _kind(value: Tensor) -> str:
    if value.is_meta:
        return "on the meta device"
    return str(value.dtype if value.layout == torch.strided else value.layout)


def _advice(weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """The constructor that these weights want, if it is not the one that the model has."""
    name, classes = constructor_of(weights), num_classes_of(weights)
    if name is None or name == constructor_of(state):
        return "the weights do not fit the model: "
    options = "" if classes == 1000 else f"num_classes={classes}"
    return f"these are {_title(name)} weights: build the model with minivmamba.{name}({options}); "


def _title(name: str) -> str:
    """vmamba_tiny → VMamba-T, vmamba_tiny_s1l8 → VMamba-T[s1l8]: the names in the papers."""
    _, size, *version = name.split("_")
    return f"VMamba-{size[0].upper()}" + (f"[{version[0]}]" if version else "")


def _first(names: Iterable[str], few: int = 3) -> str:
    names = list(names)
    more = ", …" if len(names) > few else ""
    return ", ".join(shown(name) for name in names[:few]) + more


# ---- copying and writing


def _expect_model(model: object) -> None:
    if not isinstance(model, StagedModel):
        raise TypeError(f"model: expected a VSSM or VSSMv2, got {type(model).__name__}")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(
            "model: expected weights in memory, got a model on the meta device; "
            "model.to_empty(device='cpu') gives it memory"
        )


def _fitting(value: Tensor, target: Tensor) -> Tensor:
    """A copy in the shape, on the device and in the dtype of the model's tensor.

    A copy also where nothing changes: the state dict may hold the model's own tensors.
    """
    return value.detach().to(target.device, target.dtype, copy=True).reshape(target.shape)


def _write(path: Path, data: bytes) -> None:
    """The whole file under another name first: a full disk leaves the old one as it was."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _version() -> str:
    try:
        return metadata.version("minivmamba")
    except metadata.PackageNotFoundError:  # read from a checkout that is not installed
        return "unknown"
