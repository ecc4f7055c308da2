"""Ratios that survive a machine whose speed drifts.

The contestants of a table take turns, round after round. A round takes seconds, in which the
machine hardly changes, so the ratio of two contestants is taken within a round; the median of
these ratios is the result, and their quartiles tell how far to trust it. The median of one
contestant's times over that of another would mix rounds of different moods.

A slow contestant takes part in fewer rounds and is compared in those alone.
"""

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

FEWEST_ROUNDS = 3  # less has no quartiles
TURN = 0.02  # seconds: a turn repeats a quick contestant, so that the clock's grain is lost
BRIEF = 0.3  # seconds: below it, a turn starts with a call that does not count


@dataclass(frozen=True)
class Quartiles:
    """Median and the quartiles around it."""

    q1: float
    median: float
    q3: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Quartiles":
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


class Timings:
    """Seconds a call, for every contestant and every round from the first that it took part in."""

    def __init__(self, samples: Mapping[str, Sequence[float]]) -> None:
        self.samples = samples

    def __iter__(self):
        return iter(self.samples)

    def runs(self, name: str) -> int:
        return len(self.samples[name])

    def seconds(self, name: str) -> Quartiles:
        return Quartiles.of(self.samples[name])

    def ratio(self, name: str, baseline: str) -> Quartiles:
        """How many times longer than the baseline, over the rounds in which both took part."""
        both = zip(self.samples[name], self.samples[baseline], strict=False)
        return Quartiles.of([mine / its for mine, its in both])


def compare(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int = 9,
    seconds: float = 5.0,
    clock: Callable[[], float] = time.perf_counter,
) -> Timings:
    """Let the contestants take turns.

    Args:
        contestants: name → a call without arguments.
        rounds: turns of a contestant that is quick enough.
        seconds: what the turns of one contestant may take together; a slower one gets fewer
            rounds, though at least three (or `rounds`, if that is less).
    """
    pace = {name: _warm_up(run, clock) for name, run in contestants.items()}
    turns = {
        name: min(rounds, max(FEWEST_ROUNDS, int(seconds / _turn_time(pace[name]))))
        for name in contestants
    }
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    order = list(contestants)
    for round_ in range(rounds):
        for name in order:
            if round_ < turns[name]:
                samples[name].append(_turn(contestants[name], pace[name], clock))
        order.reverse()  # nobody always comes after the same neighbour
    return Timings(samples)


def _warm_up(run: Callable[[], object], clock: Callable[[], float]) -> float:
    """Compile and touch the memory with a first call; the second tells about how long one is."""
    run()
    start = clock()
    run()
    return max(clock() - start, 1e-9)


def _calls(pace: float) -> int:
    return max(1, math.ceil(TURN / pace))


def _turn_time(pace: float) -> float:
    return pace * (_calls(pace) + (pace < BRIEF))


def _turn(run: Callable[[], object], pace: float, clock: Callable[[], float]) -> float:
    """Seconds a call."""
    calls = _calls(pace)
    if pace < BRIEF:
        run()  # brings data and threads back from wherever the last contestant left them
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = clock()
        for _ in range(calls):
            run()
        return (clock() - start) / calls
    finally:
        if collecting:
            gc.enable()
