"""Files of weights as others write them, from the published key tables alone.

Nothing here asks minivmamba for a name, a shape or an order: a table lists the tensors of a model
in the order of its printed module tree, and the writers put them into files.
"""

import argparse
import io
import math
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from contextlib import contextmanager

import numpy as np
import torch
from safetensors.torch import save_file

SMALL = ([1, 2, 1, 1], 8)  # depths and first width of a model that loads in milliseconds

# Names of the first release and of the newest.
STEM = {
    "first": ("patch_embed.proj", "patch_embed.norm"),
    "new": ("patch_embed.0", "patch_embed.2"),
}
BLOCK = {"first": ("ln_1", "self_attention"), "new": ("norm", "op")}
TOP = {"first": ("norm", "head"), "new": ("classifier.norm", "classifier.head")}


def v1_table(depths, dim, classes=1000, N=16, names="first"):
    """(key, shape) of every tensor of the first version, in order."""
    conv, stem_norm = STEM[names]
    ln, op = BLOCK[names]
    norm, head = TOP[names]
    table = [(f"{conv}.weight", (dim, 3, 4, 4)), (f"{conv}.bias", (dim,))]
    table += affine(stem_norm, dim)
    for i, depth in enumerate(depths):
        C = dim * 2**i
        d, R = 2 * C, math.ceil(C / 16)
        for j in range(depth):
            block = f"layers.{i}.blocks.{j}"
            table += affine(f"{block}.{ln}", C)
            table += scan(f"{block}.{op}", d, R, N)
            table += [
                (f"{block}.{op}.in_proj.weight", (2 * d, C)),
                (f"{block}.{op}.conv2d.weight", (d, 1, 3, 3)),
                (f"{block}.{op}.conv2d.bias", (d,)),
                *affine(f"{block}.{op}.out_norm", d),
                (f"{block}.{op}.out_proj.weight", (C, d)),
            ]
        if i < len(depths) - 1:
            table.append((f"layers.{i}.downsample.reduction.weight", (2 * C, 4 * C)))
            table += affine(f"layers.{i}.downsample.norm", 4 * C)
    return table + affine(norm, C) + linear(head, classes, C)


def v2_table(depths, dim, classes=1000, ratio=1, N=1):
    """(key, shape) of every tensor of the second version, in order."""
    table = [("patch_embed.0.weight", (dim // 2, 3, 3, 3)), ("patch_embed.0.bias", (dim // 2,))]
    table += affine("patch_embed.2", dim // 2)
    table += [("patch_embed.5.weight", (dim, dim // 2, 3, 3)), ("patch_embed.5.bias", (dim,))]
    table += affine("patch_embed.7", dim)
    for i, depth in enumerate(depths):
        C = dim * 2**i
        d, R = ratio * C, math.ceil(C / 16)
        for j in range(depth):
            block = f"layers.{i}.blocks.{j}"
            table += affine(f"{block}.norm", C)
            table += scan(f"{block}.op", d, R, N)
            table += [
                (f"{block}.op.in_proj.weight", (d, C)),
                (f"{block}.op.conv2d.weight", (d, 1, 3, 3)),
                *affine(f"{block}.op.out_norm", d),
                (f"{block}.op.out_proj.weight", (C, d)),
                *affine(f"{block}.norm2", C),
                *linear(f"{block}.mlp.fc1", 4 * C, C),
                *linear(f"{block}.mlp.fc2", C, 4 * C),
            ]
        if i < len(depths) - 1:
            table.append((f"layers.{i}.downsample.1.weight", (2 * C, C, 3, 3)))
            table.append((f"layers.{i}.downsample.1.bias", (2 * C,)))
            table += affine(f"layers.{i}.downsample.3", 2 * C)
    return table + affine("classifier.norm", C) + linear("classifier.head", classes, C)


def scan(op, d, R, N, K=4):
    return [
        (f"{op}.x_proj_weight", (K, R + 2 * N, d)),
        (f"{op}.dt_projs_weight", (K, d, R)),
        (f"{op}.dt_projs_bias", (K, d)),
        (f"{op}.A_logs", (K * d, N)),
        (f"{op}.Ds", (K * d,)),
    ]


def affine(name, C):
    return [(f"{name}.weight", (C,)), (f"{name}.bias", (C,))]


def linear(name, out, into):
    return [(f"{name}.weight", (out, into)), (f"{name}.bias", (out,))]


def drawn(table, seed=0):
    """A state dict with normal numbers; the same for the same shapes, whatever the names."""
    generator = torch.Generator().manual_seed(seed)
    # Small, so that the map that is added to in every block stays of order one.
    return OrderedDict((key, torch.randn(shape, generator=generator) / 8) for key, shape in table)


# ---- files


@contextmanager
def vanishing(name="yacs_of_the_authors"):
    """A module with a class CfgNode that exists inside this block only."""

    class CfgNode(dict):
        def __init__(self, *args):
            super().__init__(*args)
            self.frozen = True

    module = types.ModuleType(name)
    CfgNode.__module__, CfgNode.__qualname__ = name, "CfgNode"
    module.CfgNode = CfgNode
    sys.modules[name] = module
    try:
        yield CfgNode
    finally:
        del sys.modules[name]


def write_training(path, state, ema=None, legacy=False):
    """What the authors' training script saves: weights beside everything that training needs."""
    parameters = [torch.nn.Parameter(tensor.clone()) for tensor in list(state.values())[:3]]
    optimizer = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    with vanishing() as CfgNode:
        content = {
            "model": state,
            "optimizer": optimizer.state_dict(),
            "lr_scheduler": {"_step_count": 3, (0, 1): {1.5}, "betas": (0.9, 0.999)},
            "max_accuracy": np.float64(82.1),
            "scaler": {},
            "epoch": 292,
            "config": CfgNode({"MODEL": CfgNode({"NAME": "vssm", "shape": np.zeros(3)})}),
            "args": argparse.Namespace(batch=128, device=torch.device("cpu"), kind=torch.float16),
        }
        if ema is not None:
            content["model_ema"] = ema
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def write_bare(path, state, legacy=False):
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    return path


def write_safetensors(path, state):
    save_file(dict(state), path)
    return path


def with_prefix(state, prefix):
    return OrderedDict((prefix + key, tensor) for key, tensor in state.items())


def rewrite_zip(source, path, change):
    """A copy of a zip archive, checksums right, its records passed through change(name, bytes).

    None leaves a record out.
    """
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = change(name.split("/", 1)[1], old.read(name))
            if data is not None:
                new.writestr(name, data)
    return path


def zip_of_pickle(path, data):
    """An archive as torch.save writes it, with any bytes as its data.pkl."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", b"little")
    return path


def legacy_of_pickle(path, data):
    """The head of a file of torch.save before 1.6, with any bytes as its object."""
    stream = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
        pickle.dump(value, stream, protocol=2)
    path.write_bytes(stream.getvalue() + data + pickle.dumps([], protocol=2))
    return path
