"""Names of weights: the two of the public releases, and which model a state dict belongs to.

    first release       newest release
    patch_embed.proj    patch_embed.0
    patch_embed.norm    patch_embed.2
    ….ln_1              ….norm
    ….self_attention    ….op
    norm                classifier.norm
    head                classifier.head

Ours are those of the first release for the first version of the model and those of the newest for
the second, which has no others. They are compared as newest names.
"""

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from minivmamba import vssm, vssm_v2
from minivmamba.stages import StagedModel

_IN_MODEL = {
    "patch_embed.proj.": "patch_embed.0.",
    "patch_embed.norm.": "patch_embed.2.",
    "norm.": "classifier.norm.",
    "head.": "classifier.head.",
}
_IN_BLOCK = {"ln_1.": "norm.", "self_attention.": "op."}
_BLOCK = re.compile(r"layers\.\d+\.blocks\.\d+\.")

HEAD = ("classifier.head.weight", "classifier.head.bias")
# Wrappers put their name before every key: data parallel, torch.compile, a trainer's attribute.
_PREFIXES = ("module.", "_orig_mod.", "model.")


def newest_name(key: str) -> str:
    """A name of the first release as the newest has it; any other name stays."""
    return _renamed(key, _IN_MODEL, _IN_BLOCK)


def first_name(key: str) -> str:
    """A name of the newest release as the first has it; any other name stays."""
    back = [{new: old for old, new in table.items()} for table in (_IN_MODEL, _IN_BLOCK)]
    return _renamed(key, *back)


def _renamed(key: str, in_model: dict[str, str], in_block: dict[str, str]) -> str:
    block = _BLOCK.match(key)
    start, table = (block.group(), in_block) if block else ("", in_model)
    rest = key[len(start) :]
    for old, new in table.items():
        if rest.startswith(old):
            return start + new + rest[len(old) :]
    return key


def common_prefix(keys: Iterable[str]) -> str:
    """What wrappers put before every key: "", "module.", "module.module.", … ."""
    keys, prefix = list(keys), ""
    while keys:
        for added in _PREFIXES:
            if all(key.startswith(prefix + added) for key in keys):
                prefix += added
                break
        else:
            break
    return prefix


# ---- whose weights they are

# Version, depths, first width and d_inner / C. A test holds them against the constructors.
SIZES = {
    "vmamba_tiny": (1, (2, 2, 9, 2), 96, 2.0),
    "vmamba_small": (1, (2, 2, 27, 2), 96, 2.0),
    "vmamba_base": (1, (2, 2, 27, 2), 128, 2.0),
    "vmamba_tiny_s1l8": (2, (2, 2, 8, 2), 96, 1.0),
    "vmamba_small_s1l20": (2, (2, 2, 20, 2), 96, 1.0),
    "vmamba_base_s1l20": (2, (2, 2, 20, 2), 128, 1.0),
    "vmamba_tiny_s2l5": (2, (2, 2, 5, 2), 96, 2.0),
    "vmamba_small_s2l15": (2, (2, 2, 15, 2), 96, 2.0),
    "vmamba_base_s2l15": (2, (2, 2, 15, 2), 128, 2.0),
}


def constructor(name: str) -> Callable[..., StagedModel]:
    """The constructor of a name in SIZES."""
    return getattr(vssm, name, None) or getattr(vssm_v2, name)


def constructor_of(state_dict: Mapping[str, Tensor]) -> str | None:
    """The constructor of minivmamba whose models have these weights, by their names and shapes.

    The classifier may have any number of classes, see `num_classes_of`. None if there is no such
    constructor.
    """
    prefix = common_prefix(state_dict)
    shapes = {newest_name(key[len(prefix) :]): tuple(t.shape) for key, t in state_dict.items()}
    name = next((name for name, size in SIZES.items() if size == _size(shapes)), None)
    if name is None:
        return None
    with torch.device("meta"):
        expected = constructor(name)(num_classes=0).state_dict()
    if set(expected_names := {newest_name(key): key for key in expected}) != set(shapes) - {*HEAD}:
        return None
    fit = all(
        same_shape(shapes[new], tuple(expected[key].shape)) for new, key in expected_names.items()
    )
    return name if fit else None


def num_classes_of(state_dict: Mapping[str, Tensor]) -> int:
    """Classes of the classifier, 0 if there is none."""
    prefix = common_prefix(state_dict)
    for key, tensor in state_dict.items():
        if newest_name(key[len(prefix) :]) == HEAD[0] and tensor.ndim > 0:
            return tensor.shape[0]
    return 0


def same_shape(got: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Equal, or a linear layer that was stored as a convolution, (out, in, 1, 1)."""
    return got == expected or (len(expected) == 2 and got == (*expected, 1, 1))


def _size(shapes: Mapping[str, tuple[int, ...]]) -> tuple | None:
    """An entry of SIZES, read from the names and shapes."""
    blocks = {found.group() for key in shapes if (found := _BLOCK.match(key))}
    width = shapes.get("layers.0.blocks.0.norm.weight", ())
    inner = shapes.get("layers.0.blocks.0.op.out_norm.weight", ())
    if len(width) != 1 or len(inner) != 1 or width[0] == 0:
        return None
    version = 2 if "layers.0.blocks.0.mlp.fc1.weight" in shapes else 1
    stages = range(4)
    depths = tuple(sum(key.startswith(f"layers.{stage}.") for key in blocks) for stage in stages)
    return version, depths, width[0], inner[0] / width[0]
