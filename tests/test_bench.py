"""The bench: fair turns, right ratios, peers that solve the same problem, commands that run."""

import json
import os
import subprocess
import sys
from argparse import ArgumentTypeError

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from minivmamba import vmamba_tiny
from minivmamba.bench import memory, models, roofline
from minivmamba.bench.__main__ import COMMANDS, main, parse
from minivmamba.bench.family import FAMILIES
from minivmamba.bench.options import chosen, positive, whole
from minivmamba.bench.peers import OURS, PEERS
from minivmamba.bench.problem import ORDERS, STAGES, draw_problem, our_scan
from minivmamba.bench.report import Report
from minivmamba.bench.resolution import exponent
from minivmamba.bench.scan import Bench, relative, solve
from minivmamba.bench.timing import Quartiles, Timings, compare


class FakeMachine:
    """A clock that moves only when a contestant works, on a machine that becomes slower."""

    def __init__(self, slowdown=1.0):
        self.now, self.slowdown, self.log = 0.0, slowdown, []

    def clock(self):
        return self.now

    def contestant(self, name, seconds):
        def run():
            self.log.append(name)
            self.now += seconds * self.slowdown ** len(self.log)

        return run


# --- timing ------------------------------------------------------------------------------------


def test_contestants_take_turns_and_nobody_keeps_a_neighbour():
    machine = FakeMachine()
    calls = {name: machine.contestant(name, 1.0) for name in "abc"}
    timings = compare(calls, rounds=4, seconds=100, clock=machine.clock)
    warm_up, rounds = machine.log[:6], "".join(machine.log[6:])
    assert warm_up == list("aabbcc")
    assert rounds == "abccbaabccba"
    assert [timings.runs(name) for name in timings] == [4, 4, 4]


def test_ratios_ignore_a_machine_that_becomes_slower():
    machine = FakeMachine(slowdown=1.01)  # a round at the end takes twice as long as at the start
    calls = {"one": machine.contestant("one", 1.0), "three": machine.contestant("three", 3.0)}
    timings = compare(calls, rounds=9, seconds=1e9, clock=machine.clock)
    spread = timings.seconds("one")
    assert spread.q3 > 1.05 * spread.q1
    assert timings.ratio("three", "one").median == pytest.approx(3, rel=0.011)
    assert timings.ratio("one", "three").median == pytest.approx(1 / 3, rel=0.011)


def test_a_slow_contestant_is_compared_in_its_own_rounds():
    machine = FakeMachine()
    calls = {"quick": machine.contestant("quick", 1.0), "slow": machine.contestant("slow", 50.0)}
    timings = compare(calls, rounds=8, seconds=200, clock=machine.clock)
    assert timings.runs("quick") == 8 and timings.runs("slow") == 4
    samples = {"base": [1.0, 1.0, 1.0, 9.0, 9.0], "slow": [10.0, 20.0, 30.0]}
    assert Timings(samples).ratio("slow", "base") == Quartiles(15.0, 20.0, 25.0)
    assert Timings(samples).ratio("base", "slow").median == pytest.approx(1 / 20)


def test_even_the_slowest_has_three_rounds():
    machine = FakeMachine()
    calls = {"slow": machine.contestant("slow", 50.0)}
    assert compare(calls, rounds=8, seconds=1, clock=machine.clock).runs("slow") == 3
    assert compare(calls, rounds=2, seconds=1, clock=machine.clock).runs("slow") == 2


def test_a_turn_repeats_a_quick_contestant():
    machine = FakeMachine()
    calls = {"quick": machine.contestant("quick", 0.001)}
    timings = compare(calls, rounds=3, seconds=100, clock=machine.clock)
    assert len(machine.log) == 2 + 3 * (1 + 20)  # 20 ms a turn, after a call that does not count
    assert timings.seconds("quick").median == pytest.approx(0.001)


def test_quartiles():
    assert Quartiles.of([4.0, 1.0, 3.0, 2.0, 5.0]) == Quartiles(2.0, 3.0, 4.0)
    assert Quartiles.of([7.0]) == Quartiles(7.0, 7.0, 7.0)


# --- memory and floors -------------------------------------------------------------------------


def hold(mib):
    """A function for a fresh process: the peak of a piece of work that holds so many MiB."""
    return memory.peak_of(lambda: torch.ones(mib << 20, dtype=torch.uint8))


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="Linux only")
@pytest.mark.slow
def test_peak_of_a_fresh_process():
    environment = dict(os.environ)
    peak = memory.in_fresh_process(hold, 64)
    assert dict(os.environ) == environment
    if peak is None:
        pytest.skip("this container forbids to reset the peak")
    assert 64 <= peak / 2**20 < 66


def test_floors_are_positive_and_count_what_they_are_asked_for():
    floors = pytest.importorskip("minivmamba.bench.floors")
    rates = floors.rates(gib=0.01, seconds=0.05)
    assert set(rates) == {"multiply-adds", "exponentials", "bytes"}
    assert all(rate > 1e7 for rate in rates.values())
    assert rates["multiply-adds"] > rates["exponentials"]
    floors.scan_floor(draw_problem(8, 5))()


@pytest.mark.slow
def test_a_longer_floor_takes_longer():
    """LLVM must not see through the loops: ten times the work takes about ten times as long."""
    floors = pytest.importorskip("minivmamba.bench.floors")
    for work, amount in ((floors.multiply_adds, 2e8), (floors.exponentials, 2e7)):
        calls = {"one": lambda w=work, a=amount: w(a), "ten": lambda w=work, a=amount: w(10 * a)}
        assert 5 < compare(calls, rounds=5).ratio("ten", "one").median < 20


# --- scans -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exact():
    problem = draw_problem(channels=12, length=13, states=4, batch=2)

    def naive(*arguments):
        return our_scan(*arguments, backend="naive")

    return problem, solve(naive, problem.double().trainable(), training=True)


@pytest.mark.parametrize("name", [name for name in OURS | PEERS if name != "compiled"])
def test_every_scan_solves_the_same_problem(name, exact):
    """y and all gradients, with two images and four groups, none equal to another."""
    problem, expected = exact
    peer = (OURS | PEERS)[name]
    if not peer.installed:
        pytest.skip(f"{peer.needs} is not installed")
    found = solve(peer.scan, problem.arranged(peer.order).trainable(), training=True)
    for mine, its in zip(found, expected, strict=True):
        assert mine.shape == its.shape
        assert relative(mine, its) < 1e-6  # float32, sums of at most a hundred terms


@pytest.mark.slow
def test_the_compiled_scan_solves_it_too(exact):
    problem, expected = exact
    peer = PEERS["compiled"]
    try:
        found = solve(peer.scan, problem.arranged(peer.order), training=False)
    except Exception as error:
        pytest.skip(f"torch.compile does not work here: {type(error).__name__}")
    assert relative(found[0], expected[0]) < 1e-6


@pytest.mark.parametrize("order", ORDERS)
def test_an_order_changes_memory_only(order):
    problem = draw_problem(channels=12, length=5, states=3, batch=2)
    arranged = problem.arranged(order)
    for mine, its in zip(arranged.arguments, problem.arguments, strict=True):
        assert torch.equal(mine, its)
    fastest = [axis for axis in range(4) if arranged.u.stride(axis) == 1]
    assert fastest == [ORDERS[order][-1]]
    if order == "channels-last":  # as a layer leaves it: (B, L, K·d)
        assert arranged.u.flatten(1, 2).transpose(1, 2).is_contiguous()
    assert arranged.trainable().u.data_ptr() == arranged.u.data_ptr()


def test_the_stages_are_those_of_the_model():
    with torch.device("meta"):
        widths = [layer.blocks[0].self_attention.d_inner for layer in vmamba_tiny().layers]
    strides = (4, 8, 16, 32)
    sizes = [(4 * d, (224 // s) ** 2) for d, s in zip(widths, strides, strict=True)]
    assert sizes == list(STAGES.values())


def test_a_wrong_peer_is_left_out_and_a_wrong_rung_is_an_error(tmp_path, capsys):
    problem = draw_problem(channels=8, length=5, states=4)
    options = parse(["scan", "--quick", "--json", str(tmp_path / "x.json")])
    report = Report("scan", {})
    bench = Bench("tiny", problem, {"loop": PEERS["loop"]}, {}, options, report)
    peer = PEERS["loop"]
    assert bench.verify("loop", peer, "forward") < 1e-6

    def wrong(*arguments):
        return 1.01 * peer.scan(*arguments)

    def broken(*arguments):
        raise RuntimeError("no compiler\nand more")

    for scan, reason in ((wrong, "differs from the naive rung"), (broken, "RuntimeError: no comp")):
        bad = type(peer)("a bad peer", scan)
        assert bench.verify("loop", bad, "forward") is None
        assert reason in report.content["remarks"][-1]
    with pytest.raises(SystemExit, match="a bad peer differs"):
        bench.verify("standard", type(peer)("a bad peer", wrong), "forward")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_a_missing_gpu_is_named(tmp_path):
    with pytest.raises(SystemExit, match="--device: expected a CUDA device"):
        main(["scan", "--device", "cuda", "--pool", "0.01", "--json", str(tmp_path / "x.json")])


def test_the_check_takes_one_image_of_many():
    problem = draw_problem(channels=8, length=5, states=4, batch=3)
    first = problem.first_image()
    assert torch.equal(first.u, problem.u[:1]) and torch.equal(first.dy, problem.dy[:1])
    assert first.A is problem.A and first.D is problem.D


# --- the roofline ------------------------------------------------------------------------------


def test_a_roofline_by_hand():
    """One image of stage 3 fills no card: two passes; 128 images are one."""
    pytest.importorskip("triton")
    (whole_,) = roofline.passes(128, 3072, 196, multiprocessors=132, training=False)
    assert (whole_.name, whole_.row, whole_.group) == ("forward", 196, 768)
    steps = 128 * 3072 * 196
    assert whole_.amounts() == {
        "memory": pytest.approx(steps * (12 + 4 * 32 / 768)),
        "exponentials": steps * 17,
        "floats": pytest.approx(steps * 16 * 5.5),
        "issue": pytest.approx(steps * 16 * 9.2),
        "waiting": 196,
    }
    parts = roofline.passes(1, 3072, 196, multiprocessors=132, training=False)
    assert [(p.name, p.row) for p in parts] == [("what a part does", 32), ("forward", 32)]
    names = [p.name for p in roofline.passes(1, 3072, 196, 132, training=True)]
    assert names == [
        "what a part does", "forward, keeping", "again", "what a part does to g", "backward",
    ]  # fmt: skip


def test_every_kernel_waits_for_its_slowest_floor():
    pytest.importorskip("triton")
    kernels = roofline.passes(1, 3072, 196, multiprocessors=132, training=True)
    rates = roofline.CARDS["H100"].rates()
    floors = roofline.floors(kernels, rates)
    alone = [max(k.amounts()[name] / rates[name] for name in rates) for k in kernels]
    assert floors["all"] == pytest.approx(sum(alone))
    assert all(floors[name] <= floors["all"] for name in rates)
    # A card with half of everything takes twice as long, but for what waits.
    half = {name: rate / 2 for name, rate in rates.items()}
    assert roofline.floors(kernels, half)["all"] == pytest.approx(2 * floors["all"])


def test_the_floats_of_a_card_are_those_that_nvidia_reports():
    """10¹² a second, where a multiply-add counts twice."""
    reported = {"A100": 19.5, "H100": 67, "H200": 67, "L4": 30.3, "RTX3090": 35.6, "RTX4090": 82.6}
    for name, card in roofline.CARDS.items():
        assert 2 * card.rates()["floats"] / 1e12 == pytest.approx(reported[name], rel=0.01)


# --- models ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 5, 3), (2, 4, 5, 3), (2, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_as_a_convolution(shape, bias):
    layer = nn.Linear(shape[-1], 7, bias=bias).double()
    x = torch.randn(shape, dtype=torch.float64)
    linear = F.linear
    with models.on_footing("conv"):
        assert F.linear is not linear
        as_convolution = layer(x)
    assert F.linear is linear
    torch.testing.assert_close(as_convolution, layer(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", models.LABELS)
def test_the_footing_changes_no_logits(name):
    if name != "ours":
        pytest.importorskip("torchvision")
    model, x = models.build(name, 32), models.images(2, 32)
    shipped = models.inference(model, x)()
    for footing in (*models.FOOTINGS, models.SDPA):
        torch.testing.assert_close(
            models.inference(model, x, footing)(), shipped, rtol=1e-4, atol=1e-5
        )


def test_the_footing_reaches_every_linear_layer_of_the_peers(monkeypatch):
    """Each weight matrix of a linear layer comes by, those of attention and of Swin as well."""
    pytest.importorskip("torchvision")
    for name in ("swin", "convnext", "deit"):
        model, x = models.build(name, 32), models.images(1, 32)
        weights = {id(p) for p in model.parameters() if p.ndim == 2}
        weights -= {id(m.relative_position_bias_table) for m in model.modules()
                    if hasattr(m, "relative_position_bias_table")}  # fmt: skip
        seen = set()
        linear = F.linear

        def spy(x, w, b=None, seen=seen, linear=linear):
            seen.add(id(w))
            return linear(x, w, b)

        monkeypatch.setattr(F, "linear", spy)
        models.inference(model, x, "linear")()
        monkeypatch.setattr(F, "linear", linear)
        assert weights == seen, name


def test_deit_small_has_its_published_size():
    pytest.importorskip("torchvision")
    parameters = sum(p.numel() for p in models.build("deit", 224).parameters())
    assert parameters == 22_050_664


def test_the_plain_path_gives_the_logits_of_the_model():
    model, x = models.build("ours", 32).eval(), models.images(1, 32, 64)
    for scan in (our_scan, PEERS["loop"].scan):
        with torch.inference_mode():
            usual = model(x)
            with models.plain_path(scan):
                plain = model(x)
        torch.testing.assert_close(plain, usual, rtol=1e-4, atol=1e-5)


def test_the_exponent_of_a_power_law():
    sizes = [224, 384, 512]
    samples = [[c * size**3.0 for c in (1.0, 2.0, 0.5)] for size in sizes]
    assert exponent(sizes, samples).median == pytest.approx(1.5)  # size³ is pixels^1.5


# --- commands ----------------------------------------------------------------------------------

TINY = {
    "scan": ["--channels", "8", "--length", "6", "--states", "3", "--copy", "0.01"],
    "model": ["--size", "32", "--batch", "1"],
    "family": ["--size", "32", "--models", "tiny"],
    "train": ["--size", "32", "--batch", "2"],
    "resolution": ["--size", "32", "64"],
    "roofline": ["--gpu", "A100", "H100"],
}


def run(command, *more, path):
    arguments = [command, "--quick", "--repeats", "2", "--seconds", "0.05", "--pool", "0.01"]
    arguments += [*TINY[command], *more]
    main([*arguments, "--json", str(path)])
    return json.loads(path.read_text())


def is_quartiles(value):
    return (
        set(value) == {"q1", "median", "q3"} and 0 < value["q1"] <= value["median"] <= value["q3"]
    )


def check_schema(content, command):
    assert set(content) == {"command", "options", "machine", "tables", "remarks"}
    assert content["command"] == command
    assert {"cpu", "threads", "torch", "numba"} <= set(content["machine"])
    for table in content["tables"]:
        assert set(table) == {"title", "rows"} and table["rows"]
        for row in table["rows"]:
            if "ms" in row:
                assert row["runs"] >= 2 and row["label"] and is_quartiles(row["ms"])
                assert all(is_quartiles(ratio) for ratio in row["ratios"].values())


@pytest.fixture
def no_processes(monkeypatch):
    """A process that is fresh takes seconds to import torch."""
    monkeypatch.setattr(memory, "in_fresh_process", lambda function, *arguments: 1.5)


def test_roofline_says_that_it_predicts(tmp_path):
    pytest.importorskip("triton")
    content = run("roofline", path=tmp_path / "roofline.json")
    check_schema(content, "roofline")
    assert len(content["tables"]) == 8 and all("predicted" in t["title"] for t in content["tables"])
    assert all("PREDICTED, not measured" in remark for remark in content["remarks"])
    for table in content["tables"]:
        assert all(row["all"] >= row["memory"] > 0 for row in table["rows"])


def test_scan_quickly(tmp_path, capsys, no_processes):
    threads = torch.get_num_threads()
    more = ["--peers", "naive,loop,autograd", "--threads", "2"]
    content = run("scan", *more, path=tmp_path / "scan.json")
    assert torch.get_num_threads() == threads
    check_schema(content, "scan")
    assert content["machine"]["threads"] == 2
    forward = next(t for t in content["tables"] if t["title"].endswith(": forward"))
    rows = {row["name"]: row for row in forward["rows"]}
    assert {"standard", "channels-last", "naive", "loop"} <= set(rows)
    assert rows["loop"]["error"] < 1e-6
    assert rows["channels-last"]["ratios"]["× channels-last"]["median"] == 1.0
    training = next(t for t in content["tables"] if t["title"].endswith("+ backward"))
    assert {"standard", "channels-last", "autograd"} <= {row["name"] for row in training["rows"]}
    printed = capsys.readouterr().out
    assert "× channels-last" in printed and "loop of public code" in printed


@pytest.mark.slow
def test_scan_with_every_peer_from_the_command_line(tmp_path):
    command = [sys.executable, "-m", "minivmamba.bench", "scan", "--quick", "--repeats", "2"]
    result = subprocess.run(
        [*command, "--threads", "1", "--pool", "0.1", *TINY["scan"]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    content = json.loads((tmp_path / "bench-scan.json").read_text())
    check_schema(content, "scan")
    assert content["machine"]["threads"] == 1
    names = {row.get("name") for table in content["tables"] for row in table["rows"]}
    left_out = " ".join(content["remarks"])
    for name, peer in PEERS.items():
        if peer.gpu_only:  # it is not missed on a CPU
            assert name not in names and peer.label not in left_out
        else:
            assert name in names or f"{peer.label} is left out" in left_out


@pytest.mark.slow
@pytest.mark.parametrize("command", ["model", "train", "resolution"])
def test_models_with_every_peer(command, tmp_path, no_processes):
    pytest.importorskip("torchvision")
    content = run(command, path=tmp_path / "x.json")
    check_schema(content, command)
    names = {row.get("name") for table in content["tables"] for row in table["rows"]}
    assert {"ours", "swin", "convnext", "deit"} <= names
    if command == "model":
        agreement = content["tables"][0]["rows"]
        assert all(row["largest difference"] < 1e-5 for row in agreement)
        assert {"plain", "naive", "loop"} <= names
        assert len(content["tables"]) == 1 + len(models.FOOTINGS)
    if command == "train":
        memory_rows = content["tables"][-1]["rows"]
        assert memory_rows[0]["ours / it"] == 1.0
    if command == "resolution":
        exponents = content["tables"][-1]["rows"]
        assert len(exponents) == 4 and all(np.isfinite(row["e"]) for row in exponents)


def test_the_family_and_the_peers_of_its_size(tmp_path):
    pytest.importorskip("torchvision")
    content = run("family", path=tmp_path / "x.json")
    check_schema(content, "family")
    assert len(content["tables"]) == len(models.FOOTINGS)
    for table in content["tables"]:
        assert [row["name"] for row in table["rows"]] == list(FAMILIES["tiny"])
        ours, *_, swin, convnext = table["rows"]
        assert set(ours["ratios"]) == {"it / Swin-T", "it / ConvNeXt-T"}
        assert swin["ratios"]["it / Swin-T"]["median"] == 1.0
        assert convnext["ratios"]["it / ConvNeXt-T"]["median"] == 1.0
    for family in FAMILIES.values():
        assert all(name.startswith("vmamba") or name in models.TORCHVISION for name in family)


def test_a_missing_peer_is_said(monkeypatch, tmp_path, no_processes):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    content = run("scan", "--peers", "sequential", path=tmp_path / "scan.json")
    assert "mambapy, sequential is left out: pip install mambapy" in content["remarks"][0]
    assert models.installed(["swin", "deit"], report := Report("model", {})) == []
    assert "Swin-T, DeiT-S are left out: pip install torchvision" in report.content["remarks"][0]


def test_the_second_start_keeps_memory(monkeypatch):
    started = []
    monkeypatch.setattr(os, "execve", lambda *arguments: started.append(arguments))
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("glibc", "2.36"))
    memory.keep_memory()
    (_, command, environment) = started.pop()
    assert command == sys.orig_argv and memory.KEEP.items() <= environment.items()
    for name, value in memory.KEEP.items():
        monkeypatch.setenv(name, value)
    memory.keep_memory()
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.delenv("MALLOC_MMAP_MAX_")
    memory.keep_memory()
    assert not started  # no third start, and none at all elsewhere


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: command"),
        (["fly"], "invalid choice: 'fly'"),
        (["scan", "--stage", "5"], "invalid choice: 5"),
        (["scan", "--batch", "0"], "expected a whole number of at least 1, got '0'"),
        (["scan", "--peers", "loop,cuda"], "expected some of naive, loop, autograd"),
        (["scan", "--seconds", "nan"], "expected a number above 0, got 'nan'"),
        (["scan", "--repeats", "-1"], "expected a whole number of at least 1, got '-1'"),
        (["model", "--size", "100"], "expected a multiple of 16 from 32 on, got '100'"),
        (["model", "--footing", "ice"], "expected some of shipped, linear, conv; got 'ice'"),
        (["train", "--threads", "many"], "expected a whole number of at least 1, got 'many'"),
        (["scan", "--json", "/no/such/folder/x.json"], "expected a file in a folder that exists"),
        (["scan", "--channels", "8"], "--channels and --length go together"),
        (["scan", "--channels", "6", "--length", "5"], "expected a multiple of 4, got 6"),
        (["scan", "--channels", "8", "--length", "5", "--stage", "1"], "either --stage or"),
        (["resolution", "--size", "64", "64"], "two different sizes"),
    ],
)
def test_bad_arguments(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        main([*arguments, "--pool", "0.01"] if arguments else [])
    assert message in capsys.readouterr().err + str(error.value)


def test_values_of_options():
    assert whole("3") == 3 and positive("0.5") == 0.5
    assert chosen(["a", "b", "c"])("c,a") == ["a", "c"] and chosen(["a"])("none") == []
    for parse_value, text in ((whole, "1.5"), (positive, "inf"), (chosen(["a"]), "")):
        with pytest.raises(ArgumentTypeError):
            parse_value(text)
    assert list(COMMANDS) == ["scan", "model", "family", "train", "resolution", "roofline"]
