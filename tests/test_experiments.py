"""The long runs: what they drew is what they say, and a slice of each runs again here."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from minivmamba import results

FOLDER = Path(__file__).parent.parent / "experiments"


def script(name):
    """A script of experiments/ as a module."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


selection = script("selection")


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
