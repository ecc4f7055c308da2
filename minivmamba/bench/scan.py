"""`bench scan`: one selective scan at the sizes of VMamba-T.

Every contestant first solves the problem once, and the result (and gradients) must agree with the
naive rung in float64; one that does not is left out, and that is said.
"""

import argparse
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from minivmamba.bench import memory
from minivmamba.bench.options import chosen, positive, whole
from minivmamba.bench.peers import OURS, PEERS, Peer, Scan
from minivmamba.bench.problem import STAGES, Problem, draw_problem, our_scan
from minivmamba.bench.report import Report
from minivmamba.bench.timing import Timings, compare

# float32 rounds at 6e-8 and sums at most some thousand terms of both signs: 1e-6 is seen at most.
# A step left out or a group mistaken for another moves the result by a percent or more.
TOLERANCE = 1e-5
GRADIENTS = ("du", "dδ", "dA", "dB", "dC", "dD", "dbias")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--stage", type=int, nargs="+", choices=STAGES, help="stages of VMamba-T (default: all)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: cpu)")
    parser.add_argument("--batch", type=whole, default=1, help="images (default: 1)")
    parser.add_argument("--channels", type=whole, help="K·d of a problem of your own, K = 4")
    parser.add_argument("--length", type=whole, help="its L")
    parser.add_argument("--states", type=whole, default=16, help="N (default: 16)")
    parser.add_argument("--peers", type=chosen(PEERS), default=list(PEERS), metavar="a,b",
                        help=f"some of {', '.join(PEERS)}; or none")  # fmt: skip
    parser.add_argument("--copy", type=positive, default=1.0, metavar="GIB",
                        help="memory to measure the bandwidth in (default: 1)")  # fmt: skip


def sizes(options: argparse.Namespace) -> dict[str, tuple[int, int]]:
    """Title → (K·d, L)."""
    if (options.channels is None) != (options.length is None):
        raise SystemExit("scan: --channels and --length go together")
    if options.channels is not None:
        if options.stage:
            raise SystemExit("scan: either --stage or --channels and --length")
        if options.channels % 4:
            raise SystemExit(f"scan: --channels: expected a multiple of 4, got {options.channels}")
        return {"own size": (options.channels, options.length)}
    stages = options.stage or ([4] if options.quick else list(STAGES))
    return {f"stage {stage}": STAGES[stage] for stage in sorted(set(stages))}


def run(options: argparse.Namespace, report: Report) -> None:
    problems = sizes(options)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("scan: --device: expected a CUDA device for cuda, and PyTorch sees none")
    peers = _installed({name: PEERS[name] for name in options.peers}, options.device, report)
    rates = _floors(options, report)
    for title, (channels, length) in problems.items():
        problem = draw_problem(channels, length, options.states, options.batch).to(options.device)
        title = f"{title}, {options.batch} × {channels} channels, L {length}, N {options.states}"
        Bench(title, problem, peers, rates, options, report).run()
    _memory(options, report, *next(iter(problems.items())), peers)


def solve(scan: Scan, problem: Problem, training: bool) -> tuple[Tensor, ...]:
    """y, and when training the gradients of all arguments."""
    if not training:
        with torch.inference_mode():
            return (scan(*problem.arguments),)
    y = scan(*problem.arguments)
    return (y.detach(), *torch.autograd.grad(y, problem.arguments, problem.dy))


class Bench:
    """The tables of one size."""

    def __init__(
        self,
        title: str,
        problem: Problem,
        peers: Mapping[str, Peer],
        rates: Mapping[str, float],
        options: argparse.Namespace,
        report: Report,
    ) -> None:
        self.title, self.rates, self.options, self.report = title, rates, options, report
        self.problem = problem
        self.peers = {**OURS, **peers}
        self.on_gpu = options.device == "cuda"
        naive = partial(our_scan, backend="naive")
        # All states of all steps in float64: one image is enough to find a scan that is wrong.
        self.exact = solve(naive, problem.first_image().double().trainable(), training=True)
        self.orders = {p.order: problem.arranged(p.order) for p in self.peers.values()}

    def run(self) -> None:
        self.compare("forward")
        self.compare("training")
        self.accuracy()
        if self.on_gpu:
            self.roofline()
        else:
            self.threads()

    def call(self, peer: Peer, training: bool) -> Callable[[], tuple[Tensor, ...]]:
        problem = self.orders[peer.order]
        return partial(solve, peer.scan, problem.trainable() if training else problem, training)

    def timings(self, calls: Mapping[str, Callable[[], object]]) -> Timings:
        repeats, seconds = self.options.repeats, self.options.seconds
        if not self.on_gpu:
            return compare(calls, repeats, seconds)
        from minivmamba.bench.gpu import clock

        return compare(calls, repeats, seconds, clock)

    def compare(self, kind: str) -> None:
        """Time one kind of pass: ratios to both of our layouts, and the largest error."""
        calls: dict[str, Callable[[], object]] = {}
        labels, errors = {}, {}
        for name, peer in self.peers.items():
            if kind in peer.passes and (error := self.verify(name, peer, kind)) is not None:
                calls[name], labels[name] = self.call(peer, kind == "training"), peer.label
                errors[name] = error
        if kind == "forward" and self.rates and not self.on_gpu:
            from minivmamba.bench.floors import scan_floor

            calls["floor"] = scan_floor(self.problem)
            labels["floor"] = "floor: 9 vector operations a pair"
        timings = self.timings(calls)
        ratios = {
            f"× {base}": {name: timings.ratio(name, base) for name in timings} for base in OURS
        }
        if "floor" in calls:
            ratios["× floor"] = {name: timings.ratio(name, "floor") for name in timings}
        words = {"forward": "forward", "training": "forward + backward"}[kind]
        self.report.timed(f"{self.title}: {words}", timings, labels, ratios, error=errors)
        if "floor" in calls:
            self.memory_floor(timings.seconds("channels-last").median)

    def verify(self, name: str, peer: Peer, kind: str) -> float | None:
        """The largest error of y or a gradient, relative; None, with a remark: leave it out."""
        try:
            if len(self.problem.u) > 1:
                self.call(peer, kind == "training")()  # there may be no memory for so many
            found = self.of_one_image(peer, kind == "training")
        except Exception as problem:
            if name in OURS:
                raise
            reason = str(problem).strip().partition("\n")[0]
            self.report.remark(f"{peer.label} is left out: {type(problem).__name__}: {reason}")
            return None
        error = max(relative(mine, its) for mine, its in zip(found, self.exact, strict=False))
        if error <= TOLERANCE:
            return error
        sentence = f"differs from the naive rung in float64 by {error:.1e} ({kind})"
        if name in OURS:
            raise SystemExit(f"scan: {peer.label} {sentence}")
        self.report.remark(f"{peer.label} is left out: it {sentence}")
        return None

    def of_one_image(self, peer: Peer, training: bool) -> tuple[Tensor, ...]:
        problem = self.orders[peer.order].first_image()
        return solve(peer.scan, problem.trainable() if training else problem, training)

    def memory_floor(self, seconds: float) -> None:
        """What it would take to read the inputs once and write y, at the bandwidth of a copy."""
        moved = self.problem.input_bytes + self.problem.u.numel() * self.problem.u.element_size()
        floor = moved / self.rates["bytes"]
        row = {
            "": "reading every input once, writing y",
            "MB": moved / 1e6,
            "floor, ms": 1e3 * floor,
            "ours, channels-last / floor": seconds / floor,
        }
        self.report.facts(f"{self.title}: memory floor", [row])

    def accuracy(self) -> None:
        rows = []
        for peer in OURS.values():
            found = self.of_one_image(peer, training=True)
            errors = map(relative, found, self.exact)
            rows.append({"": peer.label, **dict(zip(("y", *GRADIENTS), errors, strict=True))})
        self.report.facts(f"{self.title}: error relative to float64 (L2)", rows)

    def roofline(self) -> None:
        """The kernels alone, channels-last, beside what this card could do with them at best."""
        from minivmamba.bench import gpu, roofline

        if self.problem.A.shape[1] != roofline.N:
            self.report.remark(f"The roofline is left out: it is counted for {roofline.N} states.")
            return
        batch, K, d, L = self.problem.u.shape
        peer = OURS["channels-last"]
        rows = []
        for kind in peer.passes:
            training = kind == "training"
            cards = torch.cuda.get_device_properties("cuda").multi_processor_count
            kernels = roofline.passes(batch, K * d, L, cards, training)
            floors = roofline.floors(kernels, self.rates)
            measured = gpu.kernel_seconds(self.call(peer, training))
            rows.append(
                {
                    "": {"forward": "forward", "training": "forward + backward"}[kind],
                    "kernels": len(kernels),
                    **{f"{name}, µs": 1e6 * floor for name, floor in floors.items()},
                    "measured, µs": 1e6 * measured,
                    "measured / floor": measured / floors["all"],
                }
            )
        self.report.facts(f"{self.title}: roofline of the kernels", rows)

    def threads(self) -> None:
        """One thread against all."""
        every = torch.get_num_threads()
        if every == 1:
            self.report.remark("One thread: how the scan gains from more is not measured.")
            return
        calls = {}
        for name, peer in OURS.items():
            for kind in peer.passes:
                for threads in (1, every):
                    work = self.call(peer, kind == "training")
                    calls[f"{name}, {kind}, {threads}"] = partial(_with_threads, threads, work)
        timings = self.timings(calls)
        torch.set_num_threads(every)
        gains = {
            name: timings.ratio(name.rpartition(" ")[0] + " 1", name)
            for name in calls
            if not name.endswith(" 1")
        }
        labels = {name: f"{name} thread(s)" for name in calls}
        head = f"gain of {every} threads over 1"
        self.report.timed(f"{self.title}: threads", timings, labels, {head: gains})


def relative(found: Tensor, exact: Tensor) -> float:
    """‖found − exact‖ / ‖exact‖, in float64."""
    return ((found - exact).norm() / exact.norm()).item()


def _with_threads(threads: int, work: Callable[[], object]) -> None:
    torch.set_num_threads(threads)
    work()


def _installed(peers: Mapping[str, Peer], device: str, report: Report) -> dict[str, Peer]:
    peers = {name: peer for name, peer in peers.items() if device == "cuda" or not peer.gpu_only}
    for peer in peers.values():
        if not peer.installed:
            report.remark(f"{peer.label} is left out: pip install {peer.needs} to see it.")
    return {name: peer for name, peer in peers.items() if peer.installed}


def _floors(options: argparse.Namespace, report: Report) -> dict[str, float]:
    try:
        if options.device == "cuda":
            from minivmamba.bench import gpu

            rates = gpu.rates(options.copy)
        else:
            from minivmamba.bench import floors

            rates = floors.rates(options.copy, seconds=min(options.seconds, 1.0))
    except ImportError as missing:
        report.remark(f"The floors are left out: pip install {missing.name} to measure them.")
        return {}
    rows = [{"": name, "10⁹ per second": rate / 1e9} for name, rate in rates.items()]
    report.facts("What this machine can do", rows)
    return rates


def _memory(
    options: argparse.Namespace,
    report: Report,
    title: str,
    size: tuple[int, int],
    peers: Mapping[str, Peer],
) -> None:
    """Peak of a training step beyond inputs and dy, each contestant in a process of its own."""
    if options.device == "cuda":
        _memory_of_the_card(options, report, title, size, peers)
        return
    rows = []
    for name, peer in {**OURS, **peers}.items():
        if "training" in peer.passes:
            problem = (*size, options.states, options.batch)
            work = (name, problem, torch.get_num_threads())
            extra = memory.in_fresh_process(training_memory, *work)
            if extra is None:
                report.remark("Memory is left out: only Linux tells a process its peak.")
                return
            rows.append({"": peer.label, "× inputs": extra})
    report.facts(f"{title}: memory of forward + backward beyond its inputs", rows)


def _memory_of_the_card(
    options: argparse.Namespace,
    report: Report,
    title: str,
    size: tuple[int, int],
    peers: Mapping[str, Peer],
) -> None:
    """PyTorch counts what its tensors hold on a card, so that no process of its own is needed."""
    from minivmamba.bench import gpu

    problem, rows = draw_problem(*size, options.states, options.batch).to("cuda"), []
    for peer in {**OURS, **peers}.values():
        if "training" in peer.passes:
            ready = problem.arranged(peer.order).trainable()
            try:
                extra = gpu.peak_of(partial(solve, peer.scan, ready, training=True))
            except Exception as trouble:
                reason = str(trouble).strip().partition("\n")[0]
                report.remark(f"{peer.label}: no memory figure: {type(trouble).__name__}: {reason}")
                continue
            rows.append({"": peer.label, "× inputs": extra / problem.input_bytes})
    report.facts(f"{title}: memory of forward + backward beyond its inputs", rows)


def training_memory(name: str, size: tuple[int, int, int, int], threads: int) -> float | None:
    """Bytes at the peak (y, gradients and all in between), as a multiple of the inputs' bytes."""
    torch.set_num_threads(threads)
    peer = (OURS | PEERS)[name]
    channels, length, states, batch = size
    small = draw_problem(channels, min(length, 33), states, batch).arranged(peer.order)
    solve(peer.scan, small.trainable(), training=True)  # compilers and libraries take theirs first
    problem = draw_problem(*size).arranged(peer.order).trainable()
    extra = memory.peak_of(lambda: solve(peer.scan, problem, training=True))
    return None if extra is None else extra / problem.input_bytes
