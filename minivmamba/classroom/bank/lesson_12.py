"""The exercises of lesson 12, training."""

import math

import torch
import torch.nn.functional as F

from minivmamba.classroom.exercise import Draw, Exercise, strided

# 12.1 — the learning rate of a step


def _rate(step, steps, warmup, first, peak, last):
    if step < warmup:
        return first + (peak - first) * step / warmup
    share = (step - warmup) / (steps - warmup)
    return last + (peak - last) * (1 + math.cos(math.pi * share)) / 2


def _rate_by_tensor(step, steps, warmup, first, peak, last):
    up = torch.linspace(first, peak, warmup + 1, dtype=torch.float64)[:-1]
    turned = torch.arange(steps - warmup, dtype=torch.float64) / (steps - warmup)
    down = last + (peak - last) * torch.cos(turned * math.pi / 2) ** 2
    return torch.cat([up, down])[step]


def _rate_by_middle(step, steps, warmup, first, peak, last):
    if step >= warmup:
        angle = math.pi * (step - warmup) / (steps - warmup)
        return (peak + last) / 2 + (peak - last) / 2 * math.cos(angle)
    return (first * (warmup - step) + peak * step) / warmup


def _rate_of(
    up=lambda step, warmup: step / warmup,
    turned=lambda step, steps, warmup: (step - warmup) / (steps - warmup),
    shape=lambda share: (1 + math.cos(math.pi * share)) / 2,
    begin=lambda first: first,
    end=lambda last: last,
):
    def rate(step, steps, warmup, first, peak, last):
        first, last = begin(first), end(last)
        if step < warmup:
            return first + (peak - first) * up(step, warmup)
        return last + (peak - last) * shape(turned(step, steps, warmup))

    return rate


def _cosine_times_warmup(step, steps, warmup, first, peak, last):
    cosine = last + (peak - last) * (1 + math.cos(math.pi * step / steps)) / 2
    return min(first + (peak - first) * step / warmup, cosine) if warmup else cosine


def _steps_of_runs(draw: Draw):
    runs = [
        (10, 4, 0.1, 1.0, 0.2),
        (7, 0, 0.5, 2.0, 1.0),
        (9, 1, 0.25, 3.0, 0.5),
        (draw.integer(20, 40), draw.integer(3, 9), 0.01, draw.number(0.5, 1.0), 0.05),
    ]
    return [
        (step, steps, *rest)
        for steps, *rest in runs
        for step in sorted({0, 1, 2, rest[0], steps // 2, steps - 2, steps - 1})
    ]


RATE = Exercise(
    title="The learning rate of a step",
    difficulty=2,
    hints=(
        "There are two pieces. In the first the share of the way is step / warmup, and it leads "
        "from first to peak. In the second it is counted from the end of the warm-up.",
        "The half cosine is `(1 + math.cos(math.pi * share)) / 2`: 1 at share 0, 0 at share 1. It "
        "leads from peak down to last, so `last + (peak - last) * …`.",
    ),
    specification=_rate,
    alternatives=(_rate_by_tensor, _rate_by_middle),
    arguments=("step", "steps", "warmup", "first", "peak", "last"),
    cases=_steps_of_runs,
    mistakes={
        "the cosine begins where the warm-up ends; here it has turned since step 0": (
            _rate_of(turned=lambda step, steps, warmup: step / steps),
            _cosine_times_warmup,
        ),
        "the cosine is stretched over steps − warmup steps, not over all of them": _rate_of(
            turned=lambda step, steps, warmup: (step - warmup) / steps
        ),
        "half a turn brings the rate down; a whole turn brings it up again": _rate_of(
            shape=lambda share: (1 + math.cos(2 * math.pi * share)) / 2
        ),
        "a quarter of a turn falls steeply at the end; the recipe takes half a turn": _rate_of(
            shape=lambda share: math.cos(math.pi / 2 * share)
        ),
        "this falls along a straight line; the recipe takes half a cosine": _rate_of(
            shape=lambda share: 1 - share
        ),
        "the warm-up begins at first, not at 0": _rate_of(begin=lambda first: 0.0),
        "the cosine ends at last, not at 0": _rate_of(end=lambda last: 0.0),
        "steps count from 0: the first step of the warm-up has the rate first": _rate_of(
            up=lambda step, warmup: (step + 1) / warmup
        ),
        "peak belongs to the first step after the warm-up: divide by warmup, not by warmup − 1": (
            _rate_of(up=lambda step, warmup: step / max(warmup - 1, 1))
        ),
        "there is no step number steps: the last one is steps − 1, and the rate last is nearly "
        "reached there": _rate_of(
            turned=lambda step, steps, warmup: (step - warmup) / max(steps - 1 - warmup, 1)
        ),
    },
)


# 12.2 — what decays

LISTED = ("A_logs", "Ds", "dt_projs_bias")


def _decays(name, shape):
    last = name.split(".")[-1]
    axes = sum(length > 1 for length in shape)
    return axes > 1 and last not in LISTED and not last.endswith("bias")


def _decays_by_exclusion(name, shape):
    if name.endswith("bias") or name.rpartition(".")[2] in {"A_logs", "Ds"}:
        return False
    return len([n for n in shape if n != 1]) >= 2


def _decays_by_loop(name, shape):
    wide = 0
    for n in shape:
        wide += 1 if n > 1 else 0
    for ending in (*LISTED, "bias"):
        if name.endswith(ending):
            return False
    return wide > 1


def _long_axes(shape):
    return sum(length > 1 for length in shape)


def _decays_of(listed=LISTED, axes=_long_axes, least=2, bias=True):
    def decays(name, shape):
        last = name.split(".")[-1]
        wide = axes(shape) >= least
        return wide and last not in listed and not (bias and last.endswith("bias"))

    return decays


def _parameters(draw: Draw):
    block = "layers.0.blocks.1."
    return [
        (block + "self_attention.in_proj.weight", (384, 96)),
        (block + "self_attention.A_logs", (768, 16)),
        (block + "self_attention.Ds", (768,)),
        (block + "self_attention.dt_projs_weight", (4, 192, 6)),
        (block + "self_attention.dt_projs_bias", (4, 192)),
        (block + "self_attention.conv2d.weight", (192, 1, 3, 3)),
        (block + "self_attention.conv2d.bias", (192,)),
        (block + "ln_1.weight", (96,)),
        (block + "ln_1.bias", (96,)),
        ("features.1.0.layer_scale", (28, 1, 1)),
        ("classifier.head.weight", (10, 768)),
        ("classifier.head.bias", (10,)),
        ("layers.1.blocks.0.self_attention.A_logs", (draw.integer(2, 9), 4)),
        ("layers.1.blocks.0.self_attention.Ds", (2, draw.integer(2, 9))),
        ("patch_embed.proj.weight", (96, 3, 4, 4)),
        # The rule knows three names, one ending and the shape, and nothing else about a name.
        ("pooling.query", (7, 3)),
        ("bias_of_places.table", (draw.integer(2, 5), 2)),
        ("ln_of_pairs.weight", (2, 2)),
        ("blur.weight", (1, 1, 5, 1)),
        ("norm.weight", (2048,)),
    ]


DECAY = Exercise(
    title="What decays",
    difficulty=2,
    hints=(
        "Three questions, and each may say no: is it one of the scan's own parameters, is it a "
        "bias, and does it have more than one axis that is longer than 1?",
        "`last = name.split('.')[-1]` is what the parameter is called. A_logs and dt_projs_bias "
        "have two axes, so the number of axes alone does not spare them.",
    ),
    specification=_decays,
    alternatives=(_decays_by_exclusion, _decays_by_loop),
    arguments=("name", "shape"),
    cases=_parameters,
    mistakes={
        "A_logs and dt_projs_bias have two axes: this decays them, as the released code does": (
            _decays_of(listed=("Ds",), bias=False),
            _decays_of(listed=(), bias=False),
        ),
        "A_logs has two axes and no business with decay: toward 0 it means A = −1": (
            _decays_of(listed=("Ds", "dt_projs_bias")),
            _decays_of(listed=()),
        ),
        "dt_projs_bias has two axes, and is a bias all the same": _decays_of(
            listed=("A_logs", "Ds"), bias=False
        ),
        "D may be laid out with two axes, and is still a parameter of the scan": _decays_of(
            listed=("A_logs", "dt_projs_bias")
        ),
        "an axis of length 1 does not count: a layer scale is a vector, whatever its shape": (
            _decays_of(axes=len),
            _decays_of(axes=len, least=3),
        ),
        "a norm has one axis and a scale of its own: it does not decay": (
            _decays_of(least=1),
            _decays_of(least=0),
        ),
        "a linear layer has two axes and decays": _decays_of(least=3),
        "this is the other way round: True means that it decays": lambda name, shape: (
            not _decays(name, shape)
        ),
    },
)


# 12.3 — label smoothing


def _smoothed(scores, labels, smoothing):
    logs = F.log_softmax(scores, dim=1)
    right = logs.gather(1, labels[:, None])[:, 0]
    return -((1 - smoothing) * right + smoothing * logs.mean(1)).mean()


def _smoothed_by_targets(scores, labels, smoothing):
    classes = scores.shape[1]
    target = torch.full_like(scores, smoothing / classes)
    target[torch.arange(len(labels)), labels] += 1 - smoothing
    return -(target * scores.log_softmax(1)).sum(1).mean()


def _smoothed_by_torch(scores, labels, smoothing):
    return F.cross_entropy(scores, labels, label_smoothing=smoothing)


def _smoothed_of(target=None, loss=None, join=lambda losses: losses.mean()):
    def smoothed(scores, labels, smoothing):
        classes = scores.shape[1]
        one = F.one_hot(labels, classes).to(scores.dtype)
        wanted = target(one, smoothing, classes) if target else (
            (1 - smoothing) * one + smoothing / classes
        )  # fmt: skip
        losses = loss(scores, wanted) if loss else -(wanted * scores.log_softmax(1)).sum(1)
        return join(losses)

    return smoothed


def _batches(draw: Draw):
    def some(batch, classes, smoothing, dtype=torch.float64, gaps=False):
        scores = draw.uniform(batch, classes, low=-2, high=2, dtype=dtype)
        labels = torch.tensor([draw.integer(0, classes - 1) for _ in range(batch)])
        return (strided(scores) if gaps else scores), labels, smoothing

    return [
        (torch.zeros(1, 4, dtype=torch.float64), torch.tensor([2]), 0.1),
        some(1, 2, 0.1),
        some(3, 5, 0.1),
        some(4, 10, 0.2),
        some(2, 3, 0.0),
        some(2, 3, 1.0),
        some(5, 7, 0.3, gaps=True),
        (100 * draw.uniform(2, 4), torch.tensor([1, 3]), 0.1),  # exp alone would overflow in half
        (1000 * draw.uniform(2, 4), torch.tensor([0, 2]), 0.1),
        some(3, 6, 0.1, dtype=torch.float32),
    ]


SMOOTHING = Exercise(
    title="Label smoothing",
    difficulty=3,
    hints=(
        "The target is a mixture: 1 − ε of what it was, and ε spread evenly over all K classes, "
        "the right one among them. The loss is linear in the target.",
        "So it is (1 − ε) times the usual loss plus ε times the mean of −log p over the classes. "
        "`scores.log_softmax(1)` gives all log p, `gather(1, labels[:, None])` the right ones.",
    ),
    specification=_smoothed,
    alternatives=(_smoothed_by_targets, _smoothed_by_torch),
    arguments=("scores", "labels", "smoothing"),
    cases=_batches,
    mistakes={
        "ε is spread over all K classes, the right one too; here the K − 1 others share it": (
            _smoothed_of(target=lambda one, s, k: (1 - s) * one + s / (k - 1) * (1 - one))
        ),
        "every class gets ε / K; this gives ε to every one": _smoothed_of(
            target=lambda one, s, k: (1 - s) * one + s
        ),
        "the right class has 1 − ε + ε / K: it has its part of what is spread": _smoothed_of(
            target=lambda one, s, k: (1 - s) * one + s / k * (1 - one)
        ),
        "a target adds up to 1: what is spread is taken from the right class": _smoothed_of(
            target=lambda one, s, k: one + s / k
        ),
        "the smoothing is not used": _smoothed_of(target=lambda one, s, k: one),
        "this keeps ε for the right class and spreads 1 − ε": _smoothed_of(
            target=lambda one, s, k: s * one + (1 - s) / k
        ),
        "the loss of a batch is the mean over its samples, not the sum": _smoothed_of(
            join=lambda losses: losses.sum()
        ),
        "the sum over the classes stays a sum; this divides by their number": _smoothed_of(
            loss=lambda scores, wanted: -(wanted * scores.log_softmax(1)).mean(1)
        ),
        "the loss takes the logarithm of the probabilities, not the probabilities": _smoothed_of(
            loss=lambda scores, wanted: -(wanted * scores.softmax(1)).sum(1)
        ),
        "the probabilities of one sample add up to 1: softmax runs over the classes, axis 1": (
            _smoothed_of(loss=lambda scores, wanted: -(wanted * scores.log_softmax(0)).sum(1))
        ),
        "a probability of 0 has no logarithm: take log_softmax, which never forms it": _smoothed_of(
            loss=lambda scores, wanted: -(wanted * scores.softmax(1).log()).sum(1)
        ),
        "the loss has a minus sign: less is better": _smoothed_of(
            join=lambda losses: -losses.mean()
        ),
    },
)


# 12.4 — the moving average of the weights


def _averages(weights, decay):
    average, found = weights[0].clone(), []
    for weight in weights:
        average = decay * average + (1 - decay) * weight
        found.append(average)
    return torch.stack(found)


def _averages_by_lerp(weights, decay):
    found = torch.empty_like(weights)
    found[0] = weights[0]
    for k in range(1, len(weights)):
        found[k] = found[k - 1] + (1 - decay) * (weights[k] - found[k - 1])
    return found


def _averages_by_matrix(weights, decay):
    n = len(weights)
    age = torch.arange(n)[:, None] - torch.arange(n)
    table = (1 - decay) * decay ** age.clamp(min=0).to(weights) * (age >= 0)
    table[:, 0] = decay ** torch.arange(n).to(weights)
    return (table @ weights.flatten(1)).view(weights.shape)


def _averages_of(step, start=lambda weights: weights[0].clone(), finish=lambda a, k, d: a):
    def averages(weights, decay):
        average, found = start(weights), []
        for k, weight in enumerate(weights):
            average = step(average, weight, decay, k)
            found.append(finish(average, k, decay))
        return torch.stack(found)

    return averages


def _plain(average, weight, decay, k):
    return decay * average + (1 - decay) * weight


def _one_tensor(weights, decay):
    average, found = weights[0].clone(), []
    for weight in weights:
        average.mul_(decay).add_((1 - decay) * weight)
        found.append(average)
    return torch.stack(found)


def _late(weights, decay):
    return torch.cat([weights[:1], _averages(weights, decay)[:-1]])


def _paths(draw: Draw):
    return [
        (torch.tensor([[4.0], [0.0], [8.0]], dtype=torch.float64), 0.5),
        (draw.uniform(1, 3), 0.9),
        (draw.uniform(6, 2), 0.9),
        (draw.uniform(5, 2, 3), 0.75),
        (draw.uniform(4, 3), 0.0),
        (draw.uniform(4, 3), 1.0),
        (strided(draw.uniform(7, 4)), draw.number(0.2, 0.8)),
        (draw.uniform(8, 3, dtype=torch.float32), 0.5),
    ]


AVERAGE = Exercise(
    title="The moving average of the weights",
    difficulty=2,
    hints=(
        "It is the recurrence of lesson 02, with Ā = decay and an input weight of 1 − decay. Only "
        "the beginning differs: it starts at the first weights, not at 0.",
        "`average = decay * average + (1 - decay) * weight` for each of them in turn, from "
        "`average = weights[0]`. Keep each result in a list and stack it; in-place operations "
        "would change the ones you kept.",
    ),
    specification=_averages,
    alternatives=(_averages_by_lerp, _averages_by_matrix),
    arguments=("weights", "decay"),
    cases=_paths,
    mistakes={
        "the average begins at the first weights; from 0 it needs 1/(1 − decay) steps to arrive": (
            _averages_of(_plain, start=lambda weights: torch.zeros_like(weights[0]))
        ),
        "decay belongs to the old average, and 1 − decay to what is new": _averages_of(
            lambda average, weight, decay, k: (1 - decay) * average + decay * weight
        ),
        "the two shares must add up to 1: the new weights get 1 − decay": (
            _averages_of(lambda average, weight, decay, k: decay * average + weight),
            _averages_of(
                lambda average, weight, decay, k: weight if k == 0 else decay * average + weight
            ),
        ),
        "this is Adam's correction for a start at 0; nothing is to be corrected here": (
            _averages_of(
                _plain,
                start=lambda weights: torch.zeros_like(weights[0]),
                finish=lambda a, k, d: a / (1 - d ** (k + 1)) if d < 1 else a,
            )
        ),
        "this is the mean of all so far; a moving average forgets": _averages_of(
            lambda average, weight, decay, k: average + (weight - average) / (k + 1)
        ),
        "all rows are the last average: one tensor was changed in place and kept again and again": (
            _one_tensor
        ),
        "the average after a step knows the weights of this step": _late,
        "these are the weights themselves": lambda weights, decay: weights.clone(),
    },
)


EXERCISES = {"12.1": RATE, "12.2": DECAY, "12.3": SMOOTHING, "12.4": AVERAGE}
