"""Five small backbones learn to read a digit, then to compare two (lessons 12 and 13).

    class       one digit on a photograph: which of ten?
    relation    two digits far apart: of the same class? It begins from the weights of "class"; two
                controls show what comes of a random state

Models, widths and parameters are those of `minivmamba.small_models`. All get the same images, steps
and learning rates, in three seeds. A seed decides the scenes, their order and the initial weights.
The learning rates were chosen on validation images, once for all: for "class" 2e-3, of 1e-3, 2e-3
and 4e-3 the best or second best for every model; for "relation" 1e-3, since at 2e-3 most of them
first forgot what they had learned.

Controls: a network whose features see 20 × 20 pixels; VMamba with the labels of "relation"
permuted; ResNet and VMamba on "relation" from a random state.

    python experiments/backbones.py             everything: about ninety minutes on two cores
    python experiments/backbones.py --costs     time and memory again, which want a quiet machine

A run that was stopped goes on where it was (in runs/backbones). The results are backbones.json,
backbones.safetensors with the receptive fields, and weights/ of seed 0 in half precision.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from minivmamba.receptive_field import (
    by_patch,
    cross_ratio,
    effective_receptive_field,
    half_lives,
    last_map,
    share_of_area,
)  # fmt: skip
from minivmamba.small_models import CONTROL, FIVE
from minivmamba.train.config import Config, load_config
from minivmamba.train.feed import digits
from minivmamba.train.log import read_log
from minivmamba.train.loop import Training, evaluate
from minivmamba.train.models import build_model
from minivmamba.train.snapshot import write_whole
from minivmamba.train.weights import load_weights, save_weights

HERE = Path(__file__).parent
KEPT = HERE.parent / "runs" / "backbones"
SEEDS = (0, 1, 2)
TASKS = ("class", "relation")
BASES = {"class": "digits", "relation": "same_or_different"}
NAMES = {name: build.__name__ for name, build in FIVE.items()} | {CONTROL: "small_field_cnn"}
TEST = 3960  # images of a table's accuracy
FIRST = 5  # the mean loss of so many steps is kept, and a test repeats it

FIELD_IMAGES, FIELD_ZOOM = 32, 2  # fields are measured at 128 pixels
CHECKPOINTS = {"class": (0, 50, 100, 150, 200, 300, 400, 600),
               "relation": (50, 100, 200, 400, 700, 1125)}  # fmt: skip
SIDES = (64, 96, 128, 192, 256)
SCALED_IMAGES = 360
COST_SIDES = (64, 96, 128, 192, 256, 384, 512)


def config(model: str, task: str, seed: int, start: str = "", shuffled: bool = False) -> Config:
    """One run; `model` as tables name it."""
    return load_config(
        BASES[task], model=NAMES[model], seed=seed, start=start, ema=0.0, log_every=FIRST,
        shuffle_labels=shuffled,
    )  # fmt: skip


def once(path: Path, make: Callable[[], Any]) -> Any:
    """What `make` returned the first time, kept as JSON."""
    if not path.is_file():
        value = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda file: file.write(json.dumps(value).encode()))
    return json.loads(path.read_text())


# --- training ------------------------------------------------------------------------------------


def train(run: Config, folder: Path, watch: Callable[[Training], None] | None = None) -> dict:
    """Train, and read test images that no choice was made on."""

    def found() -> dict:
        start = time.perf_counter()
        training = Training(run, folder, quiet=True)
        val = training.run(watch)["accuracy"]
        rows = read_log(folder / "log.csv")
        test = evaluate(training.model, digits(run, "test", TEST))
        done = {
            "accuracy": test["accuracy"], "val": val, "first loss": float(rows[0]["loss"]),
            "curve": [[int(r["step"]), float(r["loss"]), float(r["accuracy"])] for r in rows],
        }  # fmt: skip
        took = time.perf_counter() - start
        print(f"{folder.name}: {test['accuracy']:.3f} ({took:.0f} s)", flush=True)
        return done

    return once(folder / "found.json", found)


def chain(model: str, seed: int) -> dict:
    """Class, then relation, and what is measured on their weights."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    start = ""
    for task in TASKS:
        folder = KEPT / f"{model}_{task}_{seed}"
        watched = seed == 0 and model != CONTROL
        found[task] = train(config(model, task, seed, start), folder,
                            Fields(model, task) if watched else None)  # fmt: skip
        start = str(folder / "weights.safetensors")
        if model != CONTROL:
            net = load_weights(start)[0]
            found[task]["field"] = once(folder / "field.json", lambda n=net: measures(n))
            found[task]["scaling"] = once(
                folder / "scaling.json", lambda n=net, t=task: scaling(n, t)
            )
    if model != CONTROL:
        run = config(model, "class", seed)
        found["untrained"] = once(KEPT / f"{model}_untrained_{seed}.json",
                                  lambda: measures(untrained(run)))  # fmt: skip
    return found


def control(name: str, model: str, start: bool, shuffled: bool) -> dict:
    torch.set_num_threads(1)
    weights = str(KEPT / f"{model}_class_0" / "weights.safetensors") if start else ""
    return train(config(model, "relation", 0, weights, shuffled), KEPT / f"control_{name}")


CONTROLS = {
    "VMamba, labels permuted": ("permuted", "VMamba", True, True),
    "VMamba from a random state": ("vmamba_random", "VMamba", False, False),
    "ResNet from a random state": ("resnet_random", "ResNet", False, False),
}


# --- receptive fields ----------------------------------------------------------------------------


def untrained(run: Config) -> nn.Module:
    """The model as the run begins."""
    torch.manual_seed(run.seed)
    return build_model(run.model, run.classes, **run.options).eval()


def field(model: nn.Module) -> Tensor:
    """The effective receptive field, (128, 128)."""
    images = digits(config("VMamba", "relation", 0), "test", 180, zoom=FIELD_ZOOM)
    pictures = (images[i][0] for i in range(FIELD_IMAGES))
    return effective_receptive_field(last_map(model.eval()), pictures)


def measures(model: nn.Module) -> dict[str, Any]:
    """A field in numbers: shares of the area for half the score, half-lives, and the cross."""
    found = field(model)
    patches = by_patch(found, 16)
    cross = cross_ratio(found)
    lives = half_lives(patches)
    return {
        "share, displayed": share_of_area(found),
        "share, linear": share_of_area(found, power=1),
        "half-life, axis": finite(16 * lives.axis),
        "half-life, diagonal": finite(16 * lives.diagonal),
        "axis over diagonal": cross.ratio, "in the cross": cross.influence,
        "area of the cross": cross.area,
    }  # fmt: skip


def finite(value: float) -> float | None:
    """None where influence stays above half up to the border: JSON has no infinity."""
    return value if math.isfinite(value) else None


class Fields:
    """Keeps the field at some steps of a run: a watcher for `Training.run`."""

    def __init__(self, model: str, task: str) -> None:
        self.folder, self.task = KEPT / f"{model}_fields", task

    def __call__(self, run: Training) -> None:
        if self.task == "class" and run.done == 1:
            self.keep(0, untrained(run.config))
        if run.done in CHECKPOINTS[self.task]:
            self.keep(run.done, run.model)

    def keep(self, step: int, model: nn.Module) -> None:
        path = self.folder / f"{self.task} {step}.safetensors"
        if not path.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file({"field": field(model).float()}, path)


# --- larger images -------------------------------------------------------------------------------


def scaling(model: nn.Module, task: str) -> dict[str, list[float]]:
    """Accuracy at every side of `SIDES`, with larger objects or with more room around them."""
    run = config("VMamba", task, 0)
    return {
        way: [
            evaluate(model, digits(run, "test", SCALED_IMAGES, **{way: side / run.size}), batch=20)
            ["accuracy"]
            for side in SIDES
        ]
        for way in ("zoom", "canvas")
    }  # fmt: skip


def operations(model: nn.Module, side: int) -> float:
    """Multiply-adds of one image: half of what PyTorch counts (norms and activations are free).

    A scan counts 6N + 3 a channel and step. Attention is counted only where it is computed by
    plain products: in training mode, and with the backend for that.
    """
    plain = sdpa_kernel(SDPBackend.MATH)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), plain:
        model.train()(torch.zeros(2, 3, side, side))
    model.eval()
    return counter.get_total_flops() / 4


def memory(model: nn.Module, side: int) -> int:
    """Bytes of one image that a forward pass keeps for the backward pass, without the weights."""
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return value  # alive with the graph, so no address is used twice

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        scores = model.eval()(torch.zeros(1, 3, side, side))
    del scores
    return sum(kept.values())


def seconds(models: dict[str, nn.Module], run: Callable[[nn.Module], Any], rounds: int) -> dict:
    """Median time of every model, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in models}
    for number in range(rounds + 1):
        for name, model in models.items():
            start = time.perf_counter()
            run(model)
            if number:  # the first is to warm up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def costs() -> dict[str, Any]:
    """Operations, memory and time, one thread; times in units of ResNet's at 64 pixels."""
    torch.set_num_threads(1)
    models = {name: build(2).eval() for name, build in FIVE.items()}
    by_side = {}
    for side in COST_SIDES:
        image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            by_side[side] = seconds(models, lambda model, x=image: model(x), 9 if side < 384 else 5)
    unit = by_side[64]["ResNet"]
    rates = training_rates(models)
    return {
        "sides": COST_SIDES,
        "models": {
            name: {
                "operations": [operations(model, side) for side in COST_SIDES],
                "memory": [memory(model, side) for side in COST_SIDES],
                "time": [by_side[side][name] / unit for side in COST_SIDES],
                "training images per second": rates[name],
            }
            for name, model in models.items()
        },
    }


def training_rates(models: dict[str, nn.Module], batch: int = 64) -> dict[str, float]:
    """Images a second, forward and backward, of one thread."""
    images, labels = torch.randn(batch, 3, 64, 64), torch.zeros(batch, dtype=torch.long)

    def step(model: nn.Module) -> None:
        F.cross_entropy(model.train()(images), labels).backward()

    found = seconds(models, step, 5)
    for model in models.values():
        model.eval().zero_grad(set_to_none=True)
    return {name: batch / value for name, value in found.items()}


# --- together ------------------------------------------------------------------------------------


def spread(runs: Iterable[float]) -> dict[str, Any]:
    values = list(runs)
    return {"mean": statistics.mean(values), "spread": max(values) - min(values), "runs": values}


def work() -> tuple[dict[tuple[str, int], dict], dict[str, dict]]:
    """All runs, two at a time; seed 0 first, then what begins from its weights."""
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        chains = {(m, 0): pool.submit(chain, m, 0) for m in (*FIVE, CONTROL)}
        for one in chains.values():
            one.result()
        chains |= {(m, seed): pool.submit(chain, m, seed) for seed in SEEDS[1:] for m in FIVE}
        controls = {name: pool.submit(control, *which) for name, which in CONTROLS.items()}
        return ({key: one.result() for key, one in chains.items()},
                {name: one.result() for name, one in controls.items()})  # fmt: skip


def collect(chains: dict[tuple[str, int], dict], controls: dict[str, dict]) -> dict[str, Any]:
    models: dict[str, Any] = {}
    for model in FIVE:
        found = [chains[model, seed] for seed in SEEDS]
        models[model] = {
            "parameters": sum(p.numel() for p in FIVE[model](10).parameters()),
            "untrained": {"field": [f["untrained"] for f in found]},
        } | {
            task: {
                "accuracy": spread(f[task]["accuracy"] for f in found),
                "first losses": [f[task]["first loss"] for f in found],
                "curves": [[[n, round(loss, 4), right] for n, loss, right in f[task]["curve"]]
                           for f in found],
                "field": [f[task]["field"] for f in found],
                "scaling": {w: [f[task]["scaling"][w] for f in found] for w in ("zoom", "canvas")},
            }
            for task in TASKS
        }  # fmt: skip
    narrow = {task: chains[CONTROL, 0][task]["accuracy"] for task in TASKS}
    runs = {task: config("VMamba", task, 0) for task in TASKS}
    run = runs["class"]
    return {
        "size": run.size, "batch": run.batch, "seeds": SEEDS, "test images": TEST,
        "images": {task: one.images for task, one in runs.items()},
        "rates": {task: one.rate for task, one in runs.items()},
        "models": models,
        "controls": {CONTROL: narrow}
        | {name: {"relation": one["accuracy"]} for name, one in controls.items()},
        "scaling": {"sides": SIDES, "images": SCALED_IMAGES},
        "field": {"side": FIELD_ZOOM * run.size, "images": FIELD_IMAGES,
                  "checkpoints": CHECKPOINTS},
    }  # fmt: skip


def write_weights() -> None:
    """Weights of seed 0 in half precision, and the fields over its training."""
    (HERE / "weights").mkdir(exist_ok=True)
    for model in (*FIVE, CONTROL):
        for task in TASKS:
            net, note = load_weights(KEPT / f"{model}_{task}_0" / "weights.safetensors")
            save_weights(net, HERE / "weights" / f"{model}_{task}.safetensors",
                         note | {"start": ""}, torch.float16)  # fmt: skip
    fields = {  # of each only the shape matters: its maximum is 1
        f"{model} {path.stem}": scaled(load_file(path)["field"])
        for model in FIVE
        for path in sorted((KEPT / f"{model}_fields").glob("*.safetensors"))
    }
    save_file(fields, HERE / "backbones.safetensors")


def scaled(values: Tensor) -> Tensor:
    return (values / values.max()).half()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--costs", action="store_true", help="measure time and memory again")
    path = Path(__file__).with_suffix(".json")
    if parser.parse_args().costs:
        result = json.loads(path.read_text())
    else:
        result = collect(*work())
        write_weights()
    result["costs"] = costs()
    path.write_text(json.dumps(result, ensure_ascii=False) + "\n")
    print(f"written: {path.name}")


if __name__ == "__main__":
    main()
