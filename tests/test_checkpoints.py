"""Weights load from every layout of file, all or nothing, and nothing in a file runs."""

import copyreg
import os
import pickle
import struct
import sys
import warnings
import zipfile
from contextlib import suppress

import pytest
import torch
from checkpoint_files import (
    SMALL,
    drawn,
    legacy_of_pickle,
    rewrite_zip,
    v1_table,
    v2_table,
    vanishing,
    with_prefix,
    write_bare,
    write_safetensors,
    write_training,
    zip_of_pickle,
)
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

from minivmamba import (
    VSSM,
    CheckpointError,
    VSSMv2,
    load_checkpoint,
    save_checkpoint,
    vmamba_tiny,
    vmamba_tiny_s1l8,
)
from minivmamba.checkpoint_names import SIZES, constructor
from minivmamba.checkpoints import constructor_of, num_classes_of, read_checkpoint

CLASSES = 5


def small_v1(**options):
    return VSSM(*SMALL, num_classes=CLASSES, d_state=2, **options).eval()


def small_v2(**options):
    return VSSMv2(*SMALL, num_classes=CLASSES, **options).eval()


def first_names(**options):
    return drawn(v1_table(*SMALL, CLASSES, N=2), **options)


def newest_names(**options):
    return drawn(v1_table(*SMALL, CLASSES, N=2, names="new"), **options)


def v2_names(**options):
    return drawn(v2_table(*SMALL, CLASSES), **options)


@torch.no_grad()
def set_by_position(model, tensors):
    """The model with these parameters in the order of its module tree: names play no part."""
    for parameter, tensor in zip(model.parameters(), tensors.values(), strict=True):
        assert parameter.shape == tensor.shape
        parameter.copy_(tensor)
    return model


@torch.no_grad()
def logits(model):
    images = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    weight = next(model.parameters())
    return model(images.to(weight.device, weight.dtype))


def weights_of(model):
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def same_bits(model, before):
    state = model.state_dict()
    return state.keys() == before.keys() and all(
        torch.equal(bits(state[key]), bits(before[key])) for key in state
    )


def bits(tensor):
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)


# ---- every layout


LAYOUTS = {
    "training": lambda path, state: write_training(path, state),
    "training, legacy": lambda path, state: write_training(path, state, legacy=True),
    "bare": write_bare,
    "bare, legacy": lambda path, state: write_bare(path, state, legacy=True),
    "safetensors": write_safetensors,
    "data parallel": lambda path, state: write_training(path, with_prefix(state, "module.")),
    "twice": lambda path, state: write_bare(path, with_prefix(state, "module.module.")),
    "lightning": lambda path, state: write_bare(path, {"state_dict": with_prefix(state, "model.")}),
    "parameters": lambda path, state: write_bare(
        path, {key: nn.Parameter(tensor) for key, tensor in state.items()}
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("build", "state"),
    [(small_v1, first_names), (small_v1, newest_names), (small_v2, v2_names)],
    ids=["v1-first", "v1-newest", "v2"],
)
def test_layouts_and_names(tmp_path, layout, build, state):
    file = LAYOUTS[layout](tmp_path / "weights.bin", state())
    model = build()
    report = load_checkpoint(model, file)
    expected = set_by_position(build(), state())
    assert same_bits(model, weights_of(expected))
    assert torch.equal(logits(model), logits(expected))
    assert report.loaded == len(state()) and not report.left_out and not report.not_finite
    assert ("first" in report.renamed) == (state is first_names)
    assert str(file) in str(report) and "\n" not in str(report)


def test_the_two_names_of_the_first_version_give_the_same_logits(tmp_path):
    one, two = small_v1(), small_v1()
    load_checkpoint(one, write_training(tmp_path / "first.pth", first_names()))
    load_checkpoint(two, write_training(tmp_path / "newest.pth", newest_names()))
    assert torch.equal(logits(one), logits(two))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "table"),
    [
        (vmamba_tiny, v1_table([2, 2, 9, 2], 96)),
        (vmamba_tiny_s1l8, v2_table([2, 2, 8, 2], 96)),
    ],
    ids=["T", "T[s1l8]"],
)
def test_full_size(tmp_path, build, table):
    state = drawn(table)
    file = write_training(tmp_path / "weights.pth", state)
    model = build().eval()
    load_checkpoint(model, file)
    expected = set_by_position(build().eval(), state)
    assert torch.equal(logits(model), logits(expected))
    assert constructor_of(read_checkpoint(file)) == build.__name__


def test_plain_or_averaged_weights(tmp_path):
    file = write_training(tmp_path / "weights.pth", first_names(), ema=first_names(seed=1))
    for which, seed in {"model": 0, "model_ema": 1}.items():
        model = small_v1()
        load_checkpoint(model, file, which=which)
        assert same_bits(model, weights_of(set_by_position(small_v1(), first_names(seed=seed))))


def test_state_dicts_in_memory():
    expected = weights_of(set_by_position(small_v1(), newest_names()))
    for source in (newest_names(), {"model": newest_names(), "epoch": 3}):
        model = small_v1()
        load_checkpoint(model, source)
        assert same_bits(model, expected)


def test_a_state_dict_of_the_models_own_tensors():
    """Exchanged under the loader's hands, each must still get the other's values."""
    model = small_v1()
    state = model.state_dict()
    a, b = "norm.weight", "norm.bias"
    state[a], state[b] = state[b], state[a]
    before = weights_of(model)
    load_checkpoint(model, state)
    assert torch.equal(model.state_dict()[a], before[b])
    assert torch.equal(model.state_dict()[b], before[a])


def test_views_strides_and_shared_numbers(tmp_path):
    """Tensors that are slices, transposed, or share a storage: what torch.save keeps as it is."""
    state = first_names()
    wide = torch.randn(CLASSES + 4, 64)
    state["head.weight"] = wide[2:-2]
    state["head.bias"] = wide[:CLASSES, 3]
    state["layers.0.downsample.reduction.weight"] = torch.randn(32, 16).T
    state["norm.bias"] = torch.tensor(0.5).expand(64)
    for legacy in (False, True):
        model = small_v1()
        load_checkpoint(model, write_bare(tmp_path / "weights.pth", state, legacy))
        assert same_bits(model, weights_of(set_by_position(small_v1(), state)))


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kept", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes_are_converted_to_the_models(tmp_path, stored, kept):
    state = {key: tensor.to(stored) for key, tensor in first_names().items()}
    model = small_v1().to(kept)
    load_checkpoint(model, write_bare(tmp_path / "weights.pth", state))
    assert {parameter.dtype for parameter in model.parameters()} == {kept}
    converted = {key: tensor.to(kept) for key, tensor in state.items()}
    assert same_bits(model, weights_of(set_by_position(small_v1().to(kept), converted)))


def test_linear_weights_stored_as_convolutions(tmp_path):
    state = v2_names()
    for key, tensor in state.items():
        if "blocks" in key and tensor.ndim == 2 and "A_logs" not in key and "dt_" not in key:
            state[key] = tensor[:, :, None, None]
    model = small_v2()
    load_checkpoint(model, write_bare(tmp_path / "weights.pth", state))
    assert same_bits(model, weights_of(set_by_position(small_v2(), v2_names())))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_models_on_a_gpu(tmp_path):
    model = small_v1().cuda()
    load_checkpoint(model, write_bare(tmp_path / "weights.pth", first_names()))
    assert same_bits(model, weights_of(set_by_position(small_v1(), first_names())))


def test_gradients_and_mode_stay(tmp_path):
    model = small_v1().train()
    model.norm.weight.requires_grad_(False)
    load_checkpoint(model, write_bare(tmp_path / "weights.pth", first_names()))
    assert model.training and not model.norm.weight.requires_grad
    assert model.head.weight.requires_grad and model.head.weight.is_leaf


def test_nan_loads_and_is_reported(tmp_path):
    state = first_names()
    state["norm.bias"][3] = float("nan")
    report = load_checkpoint(small_v1(), write_bare(tmp_path / "weights.pth", state))
    assert report.not_finite == ("norm.bias",)
    assert "NaN or infinity in 1: norm.bias" in str(report)


# ---- the classifier


@pytest.mark.parametrize("classes", [0, 3, CLASSES])
def test_head_false_leaves_the_classifier_as_it_is(tmp_path, classes):
    file = write_bare(tmp_path / "weights.pth", newest_names())
    model = VSSM(*SMALL, num_classes=classes, d_state=2)
    before = weights_of(model)
    report = load_checkpoint(model, file, head=False)
    assert report.left_out == ("classifier.head.weight", "classifier.head.bias")
    heads = tuple(key for key in before if key.startswith("head."))
    assert report.kept == heads
    expected = set_by_position(small_v1(), newest_names()).state_dict()
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key] if key in heads else expected[key])


def test_weights_without_a_classifier(tmp_path):
    state = dict(list(first_names().items())[:-2])
    file = write_bare(tmp_path / "weights.pth", state)
    load_checkpoint(VSSM(*SMALL, num_classes=0, d_state=2), file)
    assert load_checkpoint(small_v1(), file, head=False).kept == ("head.weight", "head.bias")
    with pytest.raises(CheckpointError, match=r"2 missing: head\.weight, head\.bias; head=False"):
        load_checkpoint(small_v1(), file)


# ---- whose weights


TABLES = {
    "vmamba_tiny": v1_table([2, 2, 9, 2], 96),
    "vmamba_small": v1_table([2, 2, 27, 2], 96, names="new"),
    "vmamba_base": v1_table([2, 2, 27, 2], 128),
    "vmamba_tiny_s1l8": v2_table([2, 2, 8, 2], 96),
    "vmamba_small_s1l20": v2_table([2, 2, 20, 2], 96),
    "vmamba_base_s1l20": v2_table([2, 2, 20, 2], 128),
    "vmamba_tiny_s2l5": v2_table([2, 2, 5, 2], 96, ratio=2),
    "vmamba_small_s2l15": v2_table([2, 2, 15, 2], 96, ratio=2),
    "vmamba_base_s2l15": v2_table([2, 2, 15, 2], 128, ratio=2),
}


def without_numbers(table):
    return {key: torch.empty(shape, device="meta") for key, shape in table}


@pytest.mark.parametrize("name", TABLES)
def test_constructor_of_published_tables(name):
    state = without_numbers(TABLES[name])
    assert constructor_of(state) == name
    assert num_classes_of(state) == 1000
    assert list(SIZES) == list(TABLES)  # no constructor without a table
    assert constructor(name).__name__ == name


def test_constructor_of_near_misses():
    """One tensor more, less, or of another shape: not ours any more."""
    table = TABLES["vmamba_tiny"]
    assert constructor_of(without_numbers(table[:-2])) == "vmamba_tiny"  # a headless one is
    assert constructor_of(without_numbers([*table, ("extra", (1,))])) is None
    assert constructor_of(without_numbers(table[:-3])) is None
    other = v1_table([2, 2, 9, 2], 96, N=8)
    assert constructor_of(without_numbers(other)) is None
    assert constructor_of({}) is None
    assert constructor_of({"layers.0.blocks.0.norm.weight": torch.zeros(0)}) is None


@pytest.mark.parametrize(
    ("table", "advice"),
    [
        (
            v1_table([2, 2, 27, 2], 96),
            r"VMamba-S weights: .*minivmamba\.vmamba_small\(\); 234 unex",
        ),
        (v1_table([2, 2, 27, 2], 128, 21), r"VMamba-B weights: .*vmamba_base\(num_classes=21\); "),
        (v2_table([2, 2, 8, 2], 96), r"VMamba-T\[s1l8\] weights: .*minivmamba\.vmamba_tiny_s1l8"),
    ],
)
def test_weights_of_another_model_name_their_constructor(table, advice):
    with torch.device("meta"):
        model = vmamba_tiny()
    model.to_empty(device="cpu")
    with pytest.raises(CheckpointError, match=advice):
        load_checkpoint(model, without_numbers(table))


# ---- bad files


def without(state, *keys):
    return {key: tensor for key, tensor in state.items() if key not in keys}


def good(path):
    return write_training(path, first_names())


def damaged(change):
    """A kind of bad file: the records of a good one, changed."""
    return lambda path: rewrite_zip(good(path.with_name("good.pth")), path, change)


def cut(path, part):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    return path


def text(content):
    return lambda path: path.write_bytes(content)


def whole_model(path):
    with vanishing("models_of_the_authors") as kind:
        model = nn.Linear(2, 2)
        Net = type("CfgNode", (nn.Linear,), {"__module__": kind.__module__})
        sys.modules[kind.__module__].CfgNode = Net
        model.__class__ = Net
        torch.save(model, path)


def torchscript(path):
    warnings.simplefilter("ignore", FutureWarning)  # old, but such files are about
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), path)


def ordinary_zip(path, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("photos/readme.txt", "nothing here")


def compressed(path):
    with (
        zipfile.ZipFile(good(path.with_name("good.pth"))) as old,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))


def patched(key, tensor):
    return lambda path: write_bare(path, {**first_names(), key: tensor})


def safetensors_with(path, header, data=b""):
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def claiming(size, stride, storage_size, shape_of_record=64):
    """A zip file whose pickle describes one tensor with these numbers."""

    def write(path):
        pickled = pickle.dumps({"norm.bias": 0}, protocol=2)
        storage = (
            b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
        )
        tensor = (
            b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(storage_size) + b"tQK\x00"
            + b"(" + b"".join(map(number, size)) + b"t(" + b"".join(map(number, stride)) + b"t"
            + b"\x89ccollections\nOrderedDict\n)RtR"
        )  # fmt: skip
        zip_of_pickle(path, pickled.replace(b"K\x00s", tensor + b"s"))
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("archive/data/0", bytes(4 * shape_of_record))

    return write


def number(value):
    return pickle.dumps(value, protocol=2)[2:-1]


BAD = {
    "empty": (text(b""), "got an empty file"),
    "folder": (lambda path: path.mkdir(), "got a folder"),
    "HTML": (text(b"\n<!DOCTYPE html><html>Quota exceeded</html>"), "HTML page: the download fail"),
    "LFS": (text(b"version https://git-lfs.github.com/spec/v1\noid sha256:0"), "run `git lfs pull"),
    "gzip": (text(b"\x1f\x8b\x08" + bytes(64)), "got a gzip archive: unpack it first"),
    "noise": (text(b"\x00\x01noise" * 50), "got something that starts with"),
    "plain pickle": (text(pickle.dumps({"model": 1}, 2)), "got a pickle of something else"),
    "zip, cut": (lambda path: cut(good(path), 0.7), "got a bad one: the file is damaged or incom"),
    "legacy, cut": (
        lambda path: cut(write_bare(path, first_names(), legacy=True), 0.7),
        "expected storage .* whole, got less: the file is damaged",
    ),
    "safetensors, cut": (
        lambda path: cut(write_safetensors(path, first_names()), 0.7),
        "expected a safetensors file, got a bad one",
    ),
    "safetensors, header": (lambda path: safetensors_with(path, b"{not json"), "got a bad one"),
    "ordinary zip": (ordinary_zip, r"expected one data\.pkl in the zip archive.*got none"),
    "compressed": (compressed, "got a compressed one"),
    "no storage": (damaged(lambda name, data: None if name == "data/7" else data), "got none"),
    "short storage": (
        damaged(lambda name, data: data[:-4] if name == "data/7" else data),
        r"patch_embed.*|layers.*: expected \d+ bytes in storage 7, got \d+",
    ),
    "big endian": (
        damaged(lambda name, data: b"big" if name == "byteorder" else data),
        "little-endian order",
    ),
    "bad pickle": (
        damaged(lambda name, data: data[:-40] if name == "data.pkl" else data),
        r"expected a pickle in data\.pkl, got a bad one",
    ),
    "TorchScript": (torchscript, "got a TorchScript program"),
    "whole model": (whole_model, "whole model of class models_of_the_authors.CfgNode"),
    "list": (lambda path: write_bare(path, [1, 2]), "expected a dict of tensors, got a value of"),
    "empty dict": (lambda path: write_bare(path, {}), "got an empty dict"),
    "no tensors": (lambda path: write_bare(path, {"epoch": 3}), "got no weights at all"),
    "other entry": (
        lambda path: write_bare(path, {"model_ema": first_names(), "epoch": 3}),
        "expected weights in an entry 'model', got weights in 'model_ema'",
    ),
    "no number": (patched("epoch", 3), "epoch: expected a tensor, got a value of type int"),
    "missing": (
        lambda path: write_bare(path, without(newest_names(), "classifier.norm.bias")),
        r"1 missing: classifier\.norm\.bias$",
    ),
    "missing, prefix": (
        lambda path: write_bare(path, with_prefix(without(first_names(), "norm.bias"), "module.")),
        r"1 missing: module\.norm\.bias$",
    ),
    "unexpected": (patched("extra", torch.ones(1)), "1 unexpected: extra$"),
    "empty tensor": (patched("extra", torch.ones(0)), "1 unexpected: extra$"),
    "two names": (patched("classifier.norm.bias", torch.ones(64)), "one name for each weight"),
    "misshapen": (
        patched("norm.bias", torch.ones(65)),
        r"1 of another shape: norm\.bias \(65,\) where the model has \(64,\)$",
    ),
    "other head": (patched("head.bias", torch.ones(7)), "head=False leaves the classifier out"),
    "integers": (patched("norm.bias", torch.ones(64).long()), r"norm\.bias torch\.int64"),
    "complex": (patched("norm.bias", torch.ones(64) * 1j), r"norm\.bias torch\.complex64"),
    "sparse": (patched("norm.bias", torch.ones(64).to_sparse()), "_rebuild_sparse_tensor"),
    "other numbers": (
        lambda path: write_bare(path, {"model": {"a": torch.zeros(2, dtype=torch.uint16)}}),
        "a: expected a plain tensor, got one written with torch._utils._rebuild_tensor_v3",
    ),
    "too few numbers": (claiming([65], [1], 64), "expected 65 numbers for this shape, got 64"),
    "claims more": (claiming([65], [1], 65), "expected 260 bytes in storage 0, got 256"),
    "terabytes": (claiming([2**40], [1], 2**40), "expected 4398046511104 bytes in storage 0"),
    "expanded": (claiming([2**40], [0], 64), "of another shape: norm.bias"),
    "over 64 bits": (claiming([2**70], [1], 64), "expected a storage, an offset, a size"),
    "product over 64 bits": (claiming([2**40, 2**40], [0, 0], 64), "norm.bias"),
    "nothing times a lot": (claiming([0, 2**62, 2**62], [1, 1, 1], 64), "norm.bias"),
    "negative stride": (claiming([2], [-1], 64), "expected a storage, an offset, a size"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_leave_the_model_as_it_was(tmp_path, kind):
    write, message = BAD[kind]
    write(tmp_path / "weights.pth")
    model = small_v1()
    before = weights_of(model)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(model, tmp_path / "weights.pth")
    assert same_bits(model, before)
    assert str(tmp_path / "weights.pth") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_entry_names_those_there_are(tmp_path):
    file = write_training(tmp_path / "weights.pth", first_names())
    with pytest.raises(CheckpointError, match="an entry 'model_ema', got weights in 'model'"):
        load_checkpoint(small_v1(), file, which="model_ema")
    file = write_bare(tmp_path / "bare.pth", first_names())
    with pytest.raises(CheckpointError, match="got a bare state dict; which='model' reads it"):
        load_checkpoint(small_v1(), file, which="model_ema")


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file: .*nowhere\.pth"):
        load_checkpoint(small_v1(), tmp_path / "nowhere.pth")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="got no file"):
        load_checkpoint(small_v1(), tmp_path / "pipe")


def test_bad_arguments():
    state = first_names()
    with pytest.raises(TypeError, match="model: expected a VSSM or VSSMv2, got Linear"):
        load_checkpoint(nn.Linear(2, 2), state)
    with pytest.raises(TypeError, match="source: expected a path or a state dict, got list"):
        load_checkpoint(small_v1(), [state])
    with pytest.raises(TypeError, match="which: expected the name of an entry, got int"):
        load_checkpoint(small_v1(), state, which=0)
    with torch.device("meta"):
        model = small_v1()
    with pytest.raises(ValueError, match=r"got a model on the meta device; model\.to_empty"):
        load_checkpoint(model, state)
    model.to_empty(device="cpu")
    load_checkpoint(model, state)
    assert same_bits(model, weights_of(set_by_position(small_v1(), state)))


def test_state_dicts_with_other_keys_and_tensors():
    for source, message in [
        ({**first_names(), 3: torch.ones(1)}, "expected names of weights, got the key 3"),
        ({**first_names(), "norm.bias": torch.ones(64, device="meta")}, "on the meta device"),
        ({**first_names(), "norm.bias": torch.ones(64).to_sparse()}, "torch.sparse_coo"),
    ]:
        model = small_v1()
        before = weights_of(model)
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(model, source)
        assert same_bits(model, before)


# ---- hostile files


class Trap:
    """Pickles as a call."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.call


def words(text):
    return b"X" + struct.pack("<I", len(text)) + text.encode()


EXTENSION = 0x7FFF  # a number that copyreg knows a function by

TRAPS = {
    "os.mkdir": lambda canary: Trap(os.mkdir, canary),
    "os.system": lambda canary: Trap(os.system, f"mkdir '{canary}'"),
    "eval": lambda canary: Trap(eval, f"__import__('os').mkdir({canary!r})"),
    "exec": lambda canary: Trap(exec, f"__import__('os').mkdir({canary!r})"),
    "map": lambda canary: Trap(list, Trap(map, os.mkdir, [canary])),
    "hub": lambda canary: Trap(torch.hub._load_local, os.path.dirname(canary), "entry"),
    "in a tensor": lambda canary: {
        "model": {"a": Trap(torch._utils._rebuild_parameter, Trap(os.mkdir, canary), True, {})}
    },
    "state": lambda canary: Trap(complex, 1, 1, state={"a": Trap(os.mkdir, canary)}),
    "getattr": lambda canary: (
        b"cbuiltins\ngetattr\n(cimportlib\nimport_module\n" + words("os") + b"\x85R"
        + words("mkdir") + b"tR" + words(canary) + b"\x85R."
    ),
    "INST": lambda canary: b"(" + words(canary) + b"ios\nmkdir\n.",
    "OBJ": lambda canary: b"(cos\nmkdir\n" + words(canary) + b"o.",
    "STACK_GLOBAL": lambda canary: (
        b"\x80\x04" + words("os") + words("mkdir") + b"\x93" + words(canary) + b"\x85R."
    ),
    "EXT2": lambda canary: b"\x83\xff\x7f" + words(canary) + b"\x85R.",
}  # fmt: skip


@pytest.fixture
def canary(tmp_path):
    """A folder that is there if a trap worked."""
    (tmp_path / "hubconf.py").write_text("import os\ndef entry(): os.mkdir('it ran')")
    copyreg.add_extension("os", "mkdir", EXTENSION)
    yield tmp_path / "it ran"
    copyreg.remove_extension("os", "mkdir", EXTENSION)


@pytest.mark.parametrize("wrap", [zip_of_pickle, legacy_of_pickle])
@pytest.mark.parametrize("name", TRAPS)
def test_hostile_pickles_run_nothing(tmp_path, canary, monkeypatch, name, wrap):
    monkeypatch.chdir(tmp_path)
    data = TRAPS[name](str(canary))
    data = data if isinstance(data, bytes) else pickle.dumps(data, protocol=2)
    with suppress(AttributeError, TypeError):  # some fail after they have sprung
        pickle.loads(data)
    assert canary.exists(), "the trap does not work"
    canary.rmdir()
    model = small_v1()
    before = weights_of(model)
    with pytest.raises(CheckpointError):
        load_checkpoint(model, wrap(tmp_path / "weights.pth", data))
    assert not canary.exists() and same_bits(model, before)


def test_good_weights_load_beside_a_trap(tmp_path, canary):
    """What is not weights is not looked at: the config of a training run may be anything."""
    torch.save({"model": first_names(), "config": Trap(os.mkdir, str(canary))}, tmp_path / "w.pth")
    load_checkpoint(small_v1(), tmp_path / "w.pth")
    assert not canary.exists()


def test_named_modules_are_not_imported(tmp_path, monkeypatch):
    (tmp_path / "loud_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    file = zip_of_pickle(tmp_path / "weights.pth", b"\x80\x02cloud_module\nf\n)R.")
    with pytest.raises(CheckpointError, match=r"an object of loud_module\.f"):
        load_checkpoint(small_v1(), file)
    assert "loud_module" not in sys.modules


BOMBS = {
    # A dict key that is a tuple of a tuple … of two: 2^80 steps to hash it.
    "hash": b"\x80\x02})" + b"2\x86" * 80 + b"K\x01s.",
    # A memo index that makes Python's own unpickler reserve 64 GiB.
    "memo": b"\x80\x02Nr\xff\xff\xff\xff.",
    "length": b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
    "depth": b"\x80\x02" + b"(" * 30_000 + b"l" * 30_000 + b".",
    "instructions": b"\x80\x02" + b"N0" * 6_000 + b"N.",
    "itself": b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s.",
    "digits": b"\x80\x02I" + b"9" * 5000 + b"\n.",
    "no end": b"\x80\x02}",
    "nothing": b"",
    "stack": b"\x80\x02R.",
    "marks": b"\x80\x02tl.",
    "build": b"\x80\x02}}b.",
    "wrappers": b"\x80\x02}X\x01\x00\x00\x00a" + b"ctorch._utils\n_rebuild_parameter\n" * 9
    + b"N" + b"\x85R" * 9 + b"s.",
}  # fmt: skip


@pytest.mark.parametrize("wrap", [zip_of_pickle, legacy_of_pickle])
@pytest.mark.parametrize("name", BOMBS)
def test_pickles_that_would_take_for_ever(tmp_path, monkeypatch, name, wrap):
    monkeypatch.setattr("minivmamba.unpickle.MAX_INSTRUCTIONS", 10_000)
    message = (
        "more than 10000 instructions" if name == "instructions" else r"weights\.pth: .*expected"
    )
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(wrap(tmp_path / "weights.pth", BOMBS[name]))
    assert "\n" not in str(caught.value)


# ---- chance


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """A small file of each kind, with the path of a copy to damage."""
    folder = tmp_path_factory.mktemp("samples")
    table = v1_table([1], 4, 2, N=1)
    state = drawn(table)
    files = {
        "zip": write_bare(folder / "zip", state),
        "legacy": write_bare(folder / "legacy", state, legacy=True),
        "safetensors": write_safetensors(folder / "safetensors", state),
    }
    return {kind: file.read_bytes() for kind, file in files.items()}, folder / "damaged"


TINY = VSSM([1], 4, num_classes=2, d_state=1)  # built once: hundreds of files are tried


def loads_or_refuses(path):
    """Either the shapes are right, or there is an error and nothing changed."""
    model = TINY
    before = weights_of(model)
    try:
        report = load_checkpoint(model, path)
    except CheckpointError as error:
        assert same_bits(model, before)
        assert "\n" not in str(error)
        return False
    assert report.loaded == len(before)
    assert [t.shape for t in model.state_dict().values()] == [t.shape for t in before.values()]
    return True


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_cut_anywhere(samples, kind):
    files, path = samples
    whole = files[kind]
    path.write_bytes(whole)
    assert loads_or_refuses(path)
    for length in range(0, len(whole), max(1, len(whole) // 97)):
        path.write_bytes(whole[:length])
        assert not loads_or_refuses(path), f"{length} of {len(whole)} bytes"


changes = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4)


def changed(data, places):
    data = bytearray(data)
    for place, value in places:
        data[int(place * len(data))] = value
    return bytes(data)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@given(places=changes)
@example(places=[])
def test_changed_bytes(samples, kind, places):
    files, path = samples
    path.write_bytes(changed(files[kind], places))
    assert loads_or_refuses(path) or places


@given(places=changes)
@example(places=[])
def test_changed_pickles_behind_right_checksums(samples, places):
    files, path = samples
    source = path.with_name("source")
    source.write_bytes(files["zip"])
    rewrite_zip(source, path, lambda n, data: changed(data, places) if n == "data.pkl" else data)
    assert loads_or_refuses(path) or places


@given(data=st.binary(max_size=200))
def test_any_bytes_as_a_pickle(samples, data):
    assert not loads_or_refuses(zip_of_pickle(samples[1], b"\x80\x02" + data))


# ---- saving


@pytest.mark.parametrize("build", [small_v1, small_v2])
def test_saved_weights_come_back(tmp_path, build):
    model, other = build(), build()
    save_checkpoint(model, tmp_path / "weights.safetensors")
    report = load_checkpoint(other, tmp_path / "weights.safetensors")
    assert same_bits(other, weights_of(model)) and report.loaded == len(weights_of(model))
    with safe_open(tmp_path / "weights.safetensors", "pt") as file:
        assert set(file.keys()) == set(model.state_dict())
        notes = file.metadata()
    assert notes["num_classes"] == str(CLASSES) and notes["constructor"] == ""
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]


def test_the_saved_file_names_its_constructor(tmp_path):
    with torch.device("meta"):
        model = vmamba_tiny_s1l8(num_classes=3)
    model.to_empty(device="cpu")
    save_checkpoint(model, tmp_path / "weights")
    with safe_open(tmp_path / "weights", "pt") as file:
        notes = file.metadata()
    assert notes["constructor"] == "vmamba_tiny_s1l8" and notes["num_classes"] == "3"


def test_saving_models_whose_tensors_share_memory(tmp_path):
    model = small_v1()
    model.norm.bias.data = model.norm.weight.data  # safetensors alone refuses
    save_checkpoint(model, tmp_path / "weights")
    assert torch.equal(read_checkpoint(tmp_path / "weights")["norm.bias"], model.norm.weight)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, step):
    path = tmp_path / "weights"
    path.write_bytes(b"old")

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(small_v1(), path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_places_that_cannot_be_written(tmp_path):
    with pytest.raises(FileNotFoundError):
        save_checkpoint(small_v1(), tmp_path / "nowhere" / "weights")
    with pytest.raises(OSError):  # its name and number differ between systems
        save_checkpoint(small_v1(), tmp_path)
    assert list(tmp_path.iterdir()) == []
    with torch.device("meta"), pytest.raises(ValueError, match="got a model on the meta device"):
        save_checkpoint(small_v1(), tmp_path / "weights")
    with pytest.raises(TypeError, match="model: expected a VSSM or VSSMv2, got Linear"):
        save_checkpoint(nn.Linear(1, 1), tmp_path / "weights")
