"""What selection is for: two tasks that a scan with constant steps cannot do (lesson 05).

    selective copying   4 symbols stand among blanks, at random places; after 4 marks "now" the
                        model must have said them in their order.
    induction           8 pairs of a sign and a symbol, the signs in any order; at the end one of
                        the signs comes again: which symbol followed it?

Two models of one size learn each of them: they differ in whether Δ, B and C come from the input
(S6) or are parameters (LTI). A third is S6 with the labels of every batch shuffled: what it learns
is chance. Three seeds each. The tasks follow Mamba (arXiv 2312.00752, section 4.1), much shorter.
Its induction task has one sign only; in 32 places an LTI model with a short convolution learns
that, since it need not compare. Here any sign may be asked for.

    python experiments/selection.py            all runs, some minutes on two cores
    python experiments/selection.py --steps 3  a look; writes nothing

The result is selection.json, with the losses of the first steps, so that a test can repeat them.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minivmamba import inverse_softplus, selective_scan

SYMBOLS, BLANK, NOW = 8, 8, 9  # the symbols are 0 … 7
PAIRS = 8  # of induction, whose signs are the tokens 8 … 15
VOCABULARY = SYMBOLS + PAIRS
COPIES, GAP = 4, 28  # symbols to copy, places among which they stand
BATCH, STEPS, RATE = 64, 2000, 3e-3
SEEDS = (0, 1, 2)
MODELS = ("S6", "LTI", "S6, shuffled labels")
FIRST = 5  # losses kept in the result


def selective_copying(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens (batch, GAP + COPIES) and the answers at the last COPIES places (batch, COPIES)."""
    symbols = torch.randint(SYMBOLS, (batch, COPIES), generator=generator)
    order = torch.rand(batch, GAP, generator=generator).argsort(1)
    places = order[:, :COPIES].sort(1).values
    tokens = torch.full((batch, GAP), BLANK).scatter(1, places, symbols)
    return torch.cat([tokens, torch.full((batch, COPIES), NOW)], 1), symbols


def induction(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens (batch, 2 · PAIRS + 1) and the answer at the last place (batch, 1)."""
    signs = SYMBOLS + torch.rand(batch, PAIRS, generator=generator).argsort(1)
    symbols = torch.randint(SYMBOLS, (batch, PAIRS), generator=generator)
    asked = torch.randint(PAIRS, (batch, 1), generator=generator)
    pairs = torch.stack([signs, symbols], dim=2).flatten(1)
    return torch.cat([pairs, signs.gather(1, asked)], 1), symbols.gather(1, asked)


TASKS = {"selective copying": selective_copying, "induction": induction}


class Mixer(nn.Module):
    """A short convolution and a scan, whose Δ, B and C are selected or constant."""

    def __init__(self, width: int, states: int, selective: bool) -> None:
        super().__init__()
        self.selective, self.states, rank = selective, states, max(1, width // 16)
        self.conv = nn.Conv1d(width, width, 4, padding=3, groups=width)
        if selective:
            self.select = nn.Linear(width, rank + 2 * states, bias=False)
            self.steps = nn.Linear(rank, width, bias=False)
        else:
            self.B, self.C = (nn.Parameter(torch.randn(states)) for _ in range(2))
        low, high = math.log(1e-3), math.log(1e-1)
        start = torch.exp(low + (high - low) * torch.rand(width))
        self.bias = nn.Parameter(inverse_softplus(start))
        self.A_log = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(width, 1))
        self.D = nn.Parameter(torch.ones(width))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, L, width) → (batch, L, width)."""
        length = x.shape[1]
        u = F.silu(self.conv(x.transpose(1, 2))[..., :length])  # (batch, width, L), causal
        if self.selective:
            low, B, C = self.select(u.transpose(1, 2)).split(
                [self.steps.in_features, self.states, self.states], dim=2
            )
            delta, B, C = (v.transpose(1, 2) for v in (self.steps(low), B, C))
        else:
            delta = torch.zeros_like(u)
            B, C = (v[:, None].expand(len(x), -1, length) for v in (self.B, self.C))
        y = selective_scan(u, delta, -self.A_log.exp(), B, C, self.D, self.bias, True)
        return self.out(y.transpose(1, 2))


class Model(nn.Module):
    """Two mixers in residual branches."""

    def __init__(self, width: int, selective: bool, states: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.mixers = nn.ModuleList(Mixer(width, states, selective) for _ in range(2))
        self.head = nn.Linear(width, SYMBOLS)

    def forward(self, tokens: Tensor, answers: int) -> Tensor:
        """(batch, L) → the scores of the symbols at the last places, (batch, answers, SYMBOLS)."""
        x = self.embed(tokens)
        for norm, mixer in zip(self.norms, self.mixers, strict=True):
            x = x + mixer(norm(x))
        return self.head(x[:, -answers:])


WIDTHS = {"S6": 48, "LTI": 60, "S6, shuffled labels": 48}  # as many parameters, within 2%


def build(model: str, seed: int) -> Model:
    torch.manual_seed(seed)
    return Model(WIDTHS[model], selective=model != "LTI")


def train(task: str, model: str, seed: int, steps: int) -> tuple[Model, list[float]]:
    """The trained network and the loss of every step. Each step has new sequences."""
    net, generator = build(model, seed), torch.Generator().manual_seed(1000 + seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS + 1)
    losses = []
    for _ in range(steps):
        tokens, answers = TASKS[task](BATCH, generator)
        if model.endswith("shuffled labels"):
            answers = answers[torch.randperm(BATCH, generator=generator)]
        scores = net(tokens, answers.shape[1])
        loss = F.cross_entropy(scores.flatten(0, 1), answers.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return net, losses


@torch.no_grad()
def accuracy(net: Model, task: str, examples: int = 2000) -> float:
    """The share of right answers among sequences that training has not drawn."""
    tokens, answers = TASKS[task](examples, torch.Generator().manual_seed(99))
    return (net(tokens, answers.shape[1]).argmax(-1) == answers).double().mean().item()


def run(steps: int) -> dict:
    result: dict = {
        "chance": 1 / SYMBOLS, "steps": steps, "batch": BATCH, "seeds": SEEDS,
        "parameters": {m: sum(p.numel() for p in build(m, 0).parameters()) for m in MODELS},
        "tasks": {},
    }  # fmt: skip
    for task in TASKS:
        result["tasks"][task] = {}
        for model in MODELS:
            runs = []
            for seed in SEEDS:
                start = time.perf_counter()
                net, losses = train(task, model, seed, steps)
                right = accuracy(net, task)
                runs.append({"accuracy": right, "first losses": losses[:FIRST]})
                seconds = time.perf_counter() - start
                print(f"{task}, {model}, seed {seed}: {right:.3f} ({seconds:.0f} s)", flush=True)
            accuracies = [r["accuracy"] for r in runs]
            result["tasks"][task][model] = {
                "mean": statistics.mean(accuracies),
                "spread": max(accuracies) - min(accuracies),
                "runs": runs,
            }
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    torch.set_num_threads(1)  # the tensors are small
    found = run(options.steps)
    if options.steps == STEPS:
        path = Path(__file__).with_suffix(".json")
        path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        print(f"written: {path.name}")
