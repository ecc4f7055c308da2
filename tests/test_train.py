"""Training: the recipe, the order of images, and runs that are killed, split and poisoned."""

import csv
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset

import minivmamba
from minivmamba.train import (
    NonFinite,
    Training,
    list_configs,
    load_config,
    parameter_groups,
    rate_at,
)
from minivmamba.train.config import Config
from minivmamba.train.feed import Augmented, InMemory, Steps
from minivmamba.train.models import build_model
from minivmamba.train.snapshot import NAME, save_snapshot
from minivmamba.train.weights import load_weights, save_weights, start_from

TINY = """
model = "small_resnet"
classes = 10
data = "class"
size = 32
images = 24
val_images = 10
epochs = 2
batch = 4
rate = 1e-3
first_rate = 1e-5
last_rate = 1e-5
rate_batch = 0
warmup_epochs = 0.5
ema = 0.9
mixup = 0.8
cutmix = 1.0
save_every = 1
log_every = 2
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return load_config(path)


class Images(Dataset):
    """Twelve images whose brightness is their number."""

    def __init__(self, images=12, poison=None):
        self.count, self.poison = images, poison

    def __len__(self):
        return self.count

    def __getitem__(self, place):
        number = place[1] if isinstance(place, tuple) else place
        generator = torch.Generator().manual_seed(number)
        image = torch.randn(3, 32, 32, generator=generator)
        return (image * math.nan if number == self.poison else image), number % 10


def vmamba(config, **changes):
    """The same run with a small VSSM: no part of it draws or depends on its neighbours."""
    plain = {"model": "vmamba_tiny", "options": {"drop_path_rate": 0.0}, "mixup": 0.0,
             "cutmix": 0.0, "size": 32}  # fmt: skip
    return config.replace(**plain | changes)


@pytest.fixture(autouse=True)
def small_vmamba_tiny(monkeypatch):
    """VMamba-T with two stages of eight channels, in this process."""

    def small(classes, drop_path_rate=0.0):
        return minivmamba.VSSM([1, 1], 8, classes, d_state=2, drop_path_rate=drop_path_rate)

    monkeypatch.setattr(minivmamba, "vmamba_tiny", small)


# --- configurations ------------------------------------------------------------------------------


def test_every_configuration_loads():
    assert {"digits", "same_or_different", "imagenet_vmamba_tiny"} <= set(list_configs())
    for name in list_configs():
        assert load_config(name).model in ("small_vmamba",) or name.startswith("imagenet_")


@pytest.mark.parametrize(("size", "drop"), [("tiny", 0.2), ("small", 0.3), ("base", 0.5)])
def test_the_authors_recipe(size, drop):
    config = load_config(f"imagenet_vmamba_{size}")
    assert config.model == f"vmamba_{size}" and config.options == {"drop_path_rate": drop}
    assert (config.batch, config.epochs, config.warmup_epochs) == (1024, 300, 20)
    assert (config.weight_decay, config.clip, config.ema) == (0.05, 5.0, 0.9999)
    assert (config.mixup, config.cutmix, config.label_smoothing) == (0.8, 1.0, 0.1)
    per_epoch = 1_281_167 // 1024
    steps, warmup = 300 * per_epoch, 20 * per_epoch
    rates = [rate_at(step, steps, warmup, config) for step in (0, warmup, steps - 1)]
    assert rates == pytest.approx([1e-6, 1e-3, 1e-5], rel=1e-4)


def test_rate_goes_up_straight_and_down_as_a_cosine():
    config = load_config("digits", rate=1.0, first_rate=0.2, last_rate=0.1)
    rates = [rate_at(step, 14, 4, config) for step in range(14)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[9] == pytest.approx(0.55)  # half of the way down, half of the height
    falls = [a - b for a, b in pairwise(rates[4:])]
    assert min(falls) > 0 and falls.index(max(falls)) in (4, 5)
    with pytest.raises(ValueError, match="step: expected less than 14, got 14"):
        rate_at(14, 14, 4, config)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("batch = 0", "batch: expected an integer of at least 1, got 0"),
        ("ema = 1.0", "ema: expected a rate"),
        ('decay = "no"', "decay: expected one of 'intended', 'authors', got 'no'"),
        ("bach = 3", "bach .* is no entry"),
        ("mixup = 0.0", "mixup, cutmix: expected both"),
        ("micro_batches = 3", "micro_batches: expected a divisor of batch 4, got 3"),
        ("warmup_epochs = 2", "warmup_epochs: expected fewer than the 2 epochs"),
        ("epochs = = 2", "expected TOML"),
    ],
)
def test_bad_entries_get_a_sentence(tmp_path, line, message):
    name = line.split(" ")[0]
    kept = [entry for entry in TINY.splitlines() if not entry.startswith(f"{name} ")]
    path = tmp_path / "bad.toml"
    path.write_text("\n".join([*kept, line]))
    with pytest.raises(ValueError, match=message):
        load_config(path)


def test_a_configuration_that_is_not_there():
    with pytest.raises(FileNotFoundError, match=r"one of digits.*; got 'didgits'"):
        load_config("didgits")


# --- optimizer -----------------------------------------------------------------------------------


def decayed(model, decay):
    groups = parameter_groups(model, 0.05, decay)
    ours = {id(p) for p in groups[0]["params"]}
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    return {name for name, p in model.named_parameters() if id(p) in ours}


def test_what_decays_in_vmamba():
    model = minivmamba.VSSM([1, 1], 8, 5)
    intended, authors = decayed(model, "intended"), decayed(model, "authors")
    kinds = {name.partition("self_attention.")[2] for name in intended}
    assert {"x_proj_weight", "in_proj.weight", "out_proj.weight"} <= kinds
    assert "head.weight" in intended and "patch_embed.proj.weight" in intended
    for name in intended:
        assert not name.endswith(("bias", "A_logs", "Ds")) and "norm" not in name, name
    assert {n.rpartition(".")[2] for n in authors - intended} == {"A_logs", "dt_projs_bias"}


def test_what_decays_in_the_others():
    assert not any(
        "relative_position_bias" in n for n in decayed(build_model("small_swin", 2), "intended")
    )
    names = decayed(build_model("small_deit", 2), "intended")
    assert not any("pos_embedding" in n or "class_token" in n for n in names)
    assert not any(
        "layer_scale" in n for n in decayed(build_model("small_convnext", 2), "intended")
    )


# --- the order of images -------------------------------------------------------------------------


def test_an_epoch_is_a_permutation_and_processes_share_it():
    whole = list(Steps(12, 4, 7, 0, 6, 0, 1))
    for epoch in range(2):
        seen = [place for batch in whole[3 * epoch : 3 * epoch + 3] for place in batch]
        assert {e for e, _ in seen} == {epoch} and sorted(i for _, i in seen) == list(range(12))
    assert [i for _, i in whole[0]] != [i for _, i in whole[3]]
    halves = [list(Steps(12, 4, 7, 0, 6, rank, 2)) for rank in range(2)]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole


def test_the_order_does_not_depend_on_where_a_run_began():
    assert list(Steps(13, 4, 7, 4, 8, 0, 1)) == list(Steps(13, 4, 7, 0, 8, 0, 1))[4:]


class Noisy(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, number):
        return torch.rand(2) + number, number


def test_augmentation_depends_on_seed_epoch_and_image_alone():
    def drawn(seed, workers, start):
        sampler = Steps(6, 2, 3, start, 6, 0, 1)
        return [x for x, _ in DataLoader(Augmented(Noisy(), seed), batch_sampler=sampler,
                                         num_workers=workers)]  # fmt: skip

    first = drawn(0, 0, 0)
    torch.manual_seed(99)
    for other in (drawn(0, 2, 0), drawn(0, 0, 3)):
        assert torch.equal(torch.cat(first[-len(other) :]), torch.cat(other))
    assert not torch.equal(torch.cat(first), torch.cat(drawn(1, 0, 0)))
    assert not torch.equal(torch.cat(first[:3]).sort(0).values, torch.cat(first[3:]).sort(0).values)


# --- steps ---------------------------------------------------------------------------------------


def run_of(config, folder, **options):
    options.setdefault("sets", (Images(), Images()))
    return Training(config, folder, quiet=True, **options)


def gradients(run):
    images, labels = next(iter(run._batches()))
    run.step(run.model, images, labels)
    return torch.cat([p.grad.flatten() for p in run.model.parameters()])


def test_micro_batches_add_up_to_the_batch(config, tmp_path):
    one = gradients(run_of(vmamba(config), tmp_path))
    parts = gradients(run_of(vmamba(config, micro_batches=4), tmp_path))
    assert (one - parts).norm() < 1e-5 * one.norm()  # float32, sums in another order
    assert one.norm() > 0


def test_clipping_bounds_the_update(config, tmp_path):
    free = gradients(run_of(vmamba(config, clip=0.0), tmp_path))
    tied = gradients(run_of(vmamba(config, clip=0.01), tmp_path))
    assert float(tied.norm()) == pytest.approx(0.01, rel=1e-3)
    torch.testing.assert_close(tied / tied.norm(), free / free.norm(), rtol=1e-3, atol=1e-6)


def test_the_average_is_the_one_by_hand(config, tmp_path):
    run = run_of(vmamba(config, ema=0.75), tmp_path)
    by_hand = None
    for images, labels in run._batches():
        run.step(run.model, images, labels)
        now = run.model.head.weight.detach().clone()
        by_hand = now if by_hand is None else 0.75 * by_hand + 0.25 * now
        torch.testing.assert_close(run.average.module.head.weight, by_hand)


def test_smoothing_and_mixing_reach_the_loss(config, tmp_path):
    losses = {}
    for name, changes in {"plain": {}, "smooth": {"label_smoothing": 0.5},
                          "mixed": {"mixup": 0.8, "cutmix": 1.0}}.items():  # fmt: skip
        run = run_of(vmamba(config, **({"label_smoothing": 0.0} | changes)), tmp_path)
        run.model.head.weight.data.normal_(0, 1, generator=torch.Generator().manual_seed(3))
        gradients(run)
        losses[name] = float(run.sums[0])
    assert len(set(losses.values())) == 3


def test_bfloat16_leaves_the_scan_in_float32(config, tmp_path, monkeypatch):
    from minivmamba import ss2d

    kinds, scan = [], ss2d.ss2d_scan

    def spy(*arguments, **keywords):
        kinds.extend(a.dtype for a in keywords.values() if torch.is_tensor(a))
        return scan(*arguments, **keywords)

    monkeypatch.setattr(ss2d, "ss2d_scan", spy)
    run = run_of(vmamba(config, precision="bfloat16"), tmp_path)
    products = []
    run.model.head.register_forward_hook(lambda m, i, out: products.append(out.dtype))
    gradients(run)
    assert set(kinds) == {torch.float32} and products == [torch.bfloat16]


def test_a_poisoned_image_stops_the_run_and_keeps_the_snapshot(config, tmp_path):
    data = Images(poison=5)
    order = [[i for _, i in b] for b in Steps(12, 4, config.seed, 0, 6, 0, 1)]
    bad = next(step for step, batch in enumerate(order) if 5 in batch)
    run = run_of(vmamba(config), tmp_path, sets=(data, Images()))
    with pytest.raises(NonFinite, match=f"step {bad} .*the loss is nan.*learning rate") as caught:
        run.run()
    assert all(p.isfinite().all() for p in run.model.parameters())
    kept = tmp_path / NAME
    if bad:
        assert str(kept) in str(caught.value)
        assert torch.load(kept, weights_only=True)["step"] == bad
    else:
        assert "no snapshot" in str(caught.value)


def test_too_few_images_or_processes_that_do_not_divide(config, tmp_path):
    with pytest.raises(ValueError, match="batch: expected at most the 3 training images, got 4"):
        run_of(vmamba(config), tmp_path, sets=(Images(3), Images(3)))
    from minivmamba.train.processes import Processes

    three = Processes(0, 3, torch.device("cpu"))
    with pytest.raises(ValueError, match="batch: expected a multiple of 3"):
        run_of(vmamba(config), tmp_path, processes=three)


# --- snapshots, logs, weights --------------------------------------------------------------------


def test_another_run_in_the_folder_is_refused(config, tmp_path):
    run_of(vmamba(config), tmp_path).save()
    with pytest.raises(ValueError, match="holds another run: seed was 0 there and is 1 now"):
        run_of(vmamba(config, seed=1), tmp_path)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x80\x04N."])
def test_a_damaged_snapshot_gets_a_sentence_and_stays(config, tmp_path, content):
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(ValueError, match="is not a snapshot of a run"):
        run_of(vmamba(config), tmp_path)
    assert (tmp_path / NAME).read_bytes() == content


def test_a_half_written_snapshot_replaces_nothing(config, tmp_path, monkeypatch):
    save_snapshot(tmp_path, {"config": {}, "step": 1})
    before = (tmp_path / NAME).read_bytes()

    def torn(state, file):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(OSError, match="no space"):
        save_snapshot(tmp_path, {"config": {}, "step": 2})
    assert (tmp_path / NAME).read_bytes() == before
    assert list(tmp_path.glob("*.part")) == []


def test_weights_come_back_with_their_note(tmp_path):
    model = build_model("small_resnet", 4)
    note = {"model": "small_resnet", "classes": 4, "options": {}, "accuracy": 0.5}
    path = tmp_path / "w.safetensors"
    save_weights(model, path, note, torch.float16)
    again, found = load_weights(path)
    assert found == note and not again.training
    for name, value in again.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-3, atol=1e-6)
        assert value.dtype == model.state_dict()[name].dtype


def test_files_that_are_no_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="weights: expected a file"):
        load_weights(tmp_path / "none")
    path = tmp_path / "text"
    path.write_text("not at all")
    with pytest.raises(ValueError, match=r"expected a file that minivmamba\.train wrote"):
        load_weights(path)


@pytest.mark.parametrize("name", ["small_vmamba", "small_convnext", "small_swin", "small_deit"])
def test_a_run_starts_from_another_with_a_new_head(tmp_path, name):
    source, path = build_model(name, 10), tmp_path / "w.safetensors"
    save_weights(source, path, {"model": name, "classes": 10, "options": {}})
    model = build_model(name, 2)
    left = start_from(model, path)
    assert len(left) == 2  # weight and bias of the classifier
    for key, value in model.state_dict().items():
        assert key in left or torch.equal(value, source.state_dict()[key])
    with pytest.raises(ValueError, match="start: expected weights of SmallResNet"):
        start_from(build_model("small_resnet", 10), path)


# --- whole runs in processes of their own --------------------------------------------------------


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}


def command(*words):
    return [sys.executable, "-m", "minivmamba.train", *map(str, words), "--quiet"]


def results(folder):
    log = list(csv.DictReader((folder / "log.csv").open()))
    rows = [{k: v for k, v in row.items() if k != "images_per_second"} for row in log]
    files = {name: load_file(folder / name) for name in ("weights.safetensors", "ema.safetensors")}
    return rows, files


def same(first, second):
    (rows, files), (others, other_files) = first, second
    assert rows == others
    for name, tensors in files.items():
        assert tensors.keys() == other_files[name].keys()
        for key, value in tensors.items():
            assert torch.equal(value, other_files[name][key]), (name, key)


KILLER = textwrap.dedent("""
    # Dies by SIGKILL at the n-th call of one function, or never.
    import os, signal, sys
    from pathlib import Path
    import torch
    import minivmamba.train.loop as loop, minivmamba.train.snapshot as snapshot
    where, count = sys.argv[1], int(sys.argv[2])

    def deadly(function):
        def call(*arguments, **keywords):
            global count
            count -= 1
            if count == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **keywords)
        return call

    if where == "rename": Path.replace = deadly(Path.replace)
    if where == "write": os.fsync = deadly(os.fsync)
    if where == "update": torch.optim.AdamW.step = deadly(torch.optim.AdamW.step)
    if where == "average": loop.AveragedModel.update_parameters = deadly(
        loop.AveragedModel.update_parameters)
    if where == "evaluate": loop.evaluate = deadly(loop.evaluate)
    from minivmamba.train.__main__ import main
    main(sys.argv[3:])
""")
DEATHS = [
    ("update", 3),
    ("rename", 2),
    ("write", 3),
    ("average", 2),
    ("evaluate", 2),
    ("rename", 4),
]


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_was_not(tmp_path):
    """Killed in an update, in the average, while a file is written and before it is renamed."""
    config, script = tmp_path / "tiny.toml", tmp_path / "killer.py"
    config.write_text(TINY)
    script.write_text(KILLER)
    subprocess.run(command(config, "--out", tmp_path / "whole"), check=True, env=environment())
    for where, count in DEATHS:
        words = [
            sys.executable,
            script,
            where,
            count,
            config,
            "--out",
            tmp_path / "torn",
            "--quiet",
        ]
        ended = subprocess.run([*map(str, words)], env=environment(), capture_output=True)
        assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    subprocess.run(command(config, "--out", tmp_path / "torn"), check=True, env=environment())
    same(results(tmp_path / "whole"), results(tmp_path / "torn"))


@pytest.mark.slow
def test_a_kill_at_any_instant(tmp_path):
    config = tmp_path / "tiny.toml"
    config.write_text(TINY.replace("epochs = 2", "epochs = 8"))
    subprocess.run(command(config, "--out", tmp_path / "whole"), check=True, env=environment())
    kills = 0
    for delay in (0.15, 0.4, 0.27, 0.6):
        process = subprocess.Popen(command(config, "--out", tmp_path / "torn"), env=environment())
        started = time.monotonic()
        log, before = tmp_path / "torn" / "log.csv", -1.0
        if log.is_file():
            before = log.stat().st_mtime
        while process.poll() is None and time.monotonic() - started < 60:
            if log.is_file() and log.stat().st_mtime != before:
                break  # it is under way
            time.sleep(0.02)
        time.sleep(delay)
        process.kill()
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 2
    subprocess.run(command(config, "--out", tmp_path / "torn"), check=True, env=environment())
    same(results(tmp_path / "whole"), results(tmp_path / "torn"))


ONE_STEP = textwrap.dedent("""
    import sys, torch
    import torch.distributed as dist
    import minivmamba
    from minivmamba.train import Config, Training
    from minivmamba.train.processes import processes
    from torch.utils.data import Dataset

    class Images(Dataset):
        def __len__(self): return 8
        def __getitem__(self, place):
            g = torch.Generator().manual_seed(place[1])
            return torch.randn(3, 32, 32, generator=g), place[1] % 10

    minivmamba.vmamba_tiny = lambda classes, drop_path_rate: minivmamba.VSSM(
        [1, 1], 8, classes, d_state=2, drop_path_rate=drop_path_rate)
    config = Config(model="vmamba_tiny", options={"drop_path_rate": 0.0}, classes=10, size=32,
                    data="class", batch=8, epochs=1, warmup_epochs=0.0, clip=0.0)
    with processes("cpu") as here:
        run = Training(config, sys.argv[1], processes=here, quiet=True, sets=(Images(), Images()))
        net = run._distributed()
        for images, labels in run._batches():
            assert len(images) == 8 // here.world
            run.step(net, images, labels)
        if here.rank == 0:
            grads = torch.cat([p.grad.flatten() for p in run.model.parameters()])
            torch.save((grads, run.sums), sys.argv[1] + "/grads.pt")
""")


def test_two_processes_have_the_gradient_of_one_with_the_whole_batch(tmp_path):
    script = tmp_path / "one_step.py"
    script.write_text(ONE_STEP)
    found = []
    for count in (1, 2):
        out = tmp_path / str(count)
        out.mkdir()
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
        subprocess.run([sys.executable, *launch, str(script), str(out)], check=True,
                       env=environment(), timeout=120)  # fmt: skip
        found.append(torch.load(out / "grads.pt"))
    (one, sums), (two, others) = found
    assert (one - two).norm() < 1e-5 * one.norm()  # float32, sums in another order
    torch.testing.assert_close(sums, others)


@pytest.mark.slow
def test_the_command_in_two_processes(tmp_path):
    config = tmp_path / "tiny.toml"
    config.write_text(TINY)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
              "-m", "minivmamba.train", config, "--out", tmp_path / "two", "--quiet"]  # fmt: skip
    ended = subprocess.run([*map(str, launch)], env=environment(), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("accuracy:") == 2  # weights and average, by one process alone
    rows, files = results(tmp_path / "two")
    assert int(rows[-1]["step"]) == 12 and all(
        v.isfinite().all() for f in files.values() for v in f.values()
    )


def test_the_command_stops_at_a_wrong_word(tmp_path):
    for words, message in {
        ("digits", "--set", "epochs"): "--set: expected NAME=VALUE, got 'epochs'",
        ("digits", "--set", "epochs=0"): "epochs: expected an integer of at least 1, got 0",
        ("digits", "--data", "."): "data: 'class' is made from a seed and takes no folder",
    }.items():
        ended = subprocess.run(command(*words, "--out", tmp_path / "x"), env=environment(),
                               capture_output=True, text=True)  # fmt: skip
        assert ended.returncode == 2 and message in ended.stderr
    assert not (tmp_path / "x").exists()


def test_in_memory_images_are_asked_for_by_place(config):
    data = InMemory(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4))
    assert data[2][1] == data[(7, 2)][1] == 2 and data[2][0].dtype == torch.float32
    assert isinstance(config, Config)
