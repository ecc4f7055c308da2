"""The long runs: what they drew is what they say, and a slice of each runs again here."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minivmamba import evaluate, results
from minivmamba.data import PhotoDigits, local_evidence_ceiling
from minivmamba.receptive_field import share_of_area
from minivmamba.small_models import FIVE
from minivmamba.train import Training
from minivmamba.train.log import read_log
from minivmamba.train.weights import load_weights

FOLDER = Path(__file__).parent.parent / "experiments"


def script(name):
    """A script of experiments/ as a module."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


selection, backbones = script("selection"), script("backbones")
BACKBONES = results.load("backbones")
WEIGHTS = FOLDER / "weights"


def test_every_script_has_its_result_and_every_result_its_script():
    names = {path.stem for path in FOLDER.glob("*.py")}
    assert names == {path.stem for path in FOLDER.glob("*.json")}


def test_a_result_that_is_not_there():
    with pytest.raises(ValueError, match=r"expected one of .*selection.*; got 'selektion'"):
        results.load("selektion")


# --- selection (lesson 05) ---------------------------------------------------------------------


def test_selective_copying_asks_for_the_symbols_in_their_order():
    tokens, answers = selection.selective_copying(300, torch.Generator().manual_seed(0))
    assert tokens.shape == (300, selection.GAP + selection.COPIES)
    assert (tokens[:, -selection.COPIES :] == selection.NOW).all()
    for line, right in zip(tokens[:, : -selection.COPIES], answers, strict=True):
        assert torch.equal(line[line != selection.BLANK], right)
    places = (tokens[:, : -selection.COPIES] != selection.BLANK).float().mean(0)
    assert (places > 0).all()  # symbols stand everywhere


def test_induction_asks_for_what_followed_the_sign():
    tokens, answers = selection.induction(50, torch.Generator().manual_seed(0))
    asked = set()
    for line, right in zip(tokens.tolist(), answers[:, 0].tolist(), strict=True):
        pairs, sign = line[:-1], line[-1]
        assert sorted(pairs[::2]) == list(range(8, 16)) and max(pairs[1::2]) < selection.SYMBOLS
        assert pairs[pairs.index(sign) + 1] == right
        asked.add(pairs.index(sign))
    assert len(asked) == selection.PAIRS


def test_the_models_are_equally_large():
    sizes = results.load("selection")["parameters"]
    assert sizes == {
        m: sum(p.numel() for p in selection.build(m, 0).parameters()) for m in selection.MODELS
    }
    assert abs(sizes["S6"] - sizes["LTI"]) < 0.02 * sizes["S6"]


def test_only_the_selective_mixer_looks_at_its_input():
    """Of an LTI mixer the scan is linear: its Δ, B and C are those of any other input."""
    torch.manual_seed(0)
    for selective in (True, False):
        mixer = selection.Mixer(8, 4, selective)
        calls = []

        def spy(u, delta, A, B, C, *rest, calls=calls):
            calls.append((delta, B, C))
            return torch.zeros_like(u)

        selection.selective_scan, kept = spy, selection.selective_scan
        try:
            for _ in range(2):
                mixer(torch.randn(1, 5, 8))
        finally:
            selection.selective_scan = kept
        same = [torch.equal(one, other) for one, other in zip(*calls, strict=True)]
        assert same == [not selective] * 3


@pytest.mark.parametrize("task", selection.TASKS)
@pytest.mark.parametrize("model", selection.MODELS)
def test_the_first_steps_repeat(task, model):
    """On other machines sums round differently; five steps of training spread that a little."""
    for seed, kept in enumerate(results.load("selection")["tasks"][task][model]["runs"][:2]):
        _, losses = selection.train(task, model, seed, selection.FIRST)
        assert losses == pytest.approx(kept["first losses"], rel=1e-3)


# --- backbones (lessons 12 and 13) -------------------------------------------------------------


class Drawn(torch.utils.data.Dataset):
    """The training images of a run, drawn when they are asked for: 38,400 would take a while."""

    def __init__(self, config):
        self.photos = PhotoDigits("train", config.data, config.size, config.images, config.seed)

    def __len__(self):
        return len(self.photos)

    def __getitem__(self, place):
        return self.photos[place[1]]


class Enough(Exception):
    pass


def first_loss(config, folder):
    """The mean loss of the first steps of a run."""

    def watch(run):
        if run.done == backbones.FIRST:
            raise Enough

    run = Training(config, folder, quiet=True, sets=(Drawn(config), None))
    with pytest.raises(Enough):
        run.run(watch)
    return float(read_log(folder / "log.csv")[0]["loss"])


def test_the_backbones_are_equally_large():
    sizes = {name: found["parameters"] for name, found in BACKBONES["models"].items()}
    assert sizes == {
        name: sum(p.numel() for p in build(10).parameters()) for name, build in FIVE.items()
    }
    assert max(sizes.values()) < 1.05 * min(sizes.values()) < 500_000


@pytest.mark.parametrize(("model", "seed"), [*((model, 0) for model in FIVE), ("VMamba", 2)])
def test_the_first_steps_of_a_backbone_repeat(model, seed, tmp_path):
    """Other machines round differently; five steps of training spread that a little."""
    kept = BACKBONES["models"][model]["class"]["first losses"][seed]
    found = first_loss(backbones.config(model, "class", seed), tmp_path)
    assert found == pytest.approx(kept, rel=2e-3)


def test_the_relation_begins_from_the_weights_of_the_class(tmp_path):
    """Those in the repository are rounded to half precision."""
    start = str(WEIGHTS / "ResNet_class.safetensors")
    kept = BACKBONES["models"]["ResNet"]["relation"]["first losses"][0]
    found = first_loss(backbones.config("ResNet", "relation", 0, start), tmp_path)
    assert found == pytest.approx(kept, rel=2e-2)


@pytest.mark.parametrize("task", backbones.TASKS)
@pytest.mark.parametrize("model", ["ResNet", pytest.param("VMamba", marks=pytest.mark.slow)])
def test_evaluate_reproduces_a_row_of_the_table(model, task, capsys):
    """Half precision and another machine may turn a few of the 3,960 answers."""
    evaluate.main([str(WEIGHTS / f"{model}_{task}.safetensors"), "--json", "--device", "cpu"])
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == BACKBONES["test images"]
    row = BACKBONES["models"][model][task]["accuracy"]["runs"]
    assert found["accuracy"] == pytest.approx(row[0], abs=2e-3)


def test_means_and_spreads_are_those_of_the_runs():
    for model in BACKBONES["models"].values():
        for task in backbones.TASKS:
            row = model[task]["accuracy"]
            assert len(row["runs"]) == len(BACKBONES["seeds"]) == 3
            assert row["mean"] == pytest.approx(sum(row["runs"]) / 3)
            assert row["spread"] == pytest.approx(max(row["runs"]) - min(row["runs"]))


def test_the_controls_say_that_the_relation_needs_two_places_at_once():
    """Within two standard errors of 3,960 answers."""
    error = (0.25 / BACKBONES["test images"]) ** 0.5
    narrow = BACKBONES["controls"]["field_CNN"]["relation"]
    assert narrow < float(local_evidence_ceiling()) + 2 * error
    permuted = BACKBONES["controls"]["VMamba, labels permuted"]["relation"]
    assert abs(permuted - 0.5) < 3 * error


def test_the_fields_are_those_of_the_weights():
    model = load_weights(WEIGHTS / "ResNet_relation.safetensors")[0]
    found = backbones.measures(model)
    kept = BACKBONES["models"]["ResNet"]["relation"]["field"][0]
    assert found["share, linear"] == pytest.approx(kept["share, linear"], abs=0.03)
    assert found["axis over diagonal"] == pytest.approx(kept["axis over diagonal"], rel=0.03)
    fields = load_file(backbones.HERE / "backbones.safetensors")
    steps = [f"{task} {step}" for task in backbones.TASKS for step in backbones.CHECKPOINTS[task]]
    assert set(fields) == {f"{model} {step}" for model in FIVE for step in steps}
    last = fields["ResNet relation 1125"].double()
    assert share_of_area(last, power=1) == pytest.approx(kept["share, linear"], abs=0.02)


def test_operations_and_memory_repeat():
    for name, build in FIVE.items():
        kept = BACKBONES["costs"]["models"][name]
        for place in (0, 2):
            side = BACKBONES["costs"]["sides"][place]
            assert backbones.operations(build(2), side) == kept["operations"][place]
            # What autograd keeps differs a little between versions of PyTorch.
            assert backbones.memory(build(2), side) == pytest.approx(kept["memory"][place], rel=0.1)
