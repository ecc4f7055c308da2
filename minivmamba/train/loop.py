"""The steps of a run: forward, backward, clip, update, average; and now and then a look."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import BatchSampler, Dataset

from minivmamba.data import mix_batches
from minivmamba.train import feed
from minivmamba.train.config import Config
from minivmamba.train.log import Log
from minivmamba.train.models import build_model
from minivmamba.train.optimizer import adamw, rate_at
from minivmamba.train.processes import Processes
from minivmamba.train.snapshot import NAME, load_snapshot, save_snapshot
from minivmamba.train.weights import save_weights, start_from


class NonFinite(ArithmeticError):
    """The loss or the gradient became NaN or infinite; the weights are those before this step."""


class Training:
    """One run: build it, and call `run`. What is already in its folder is gone on with.

    Args:
        config: what the run is.
        out: folder for the snapshot, the log and the weights.
        root: folder of the user's images, for data="folder".
        processes: which part of the run this process is.
        workers: processes that load images; 0 loads them in this one.
        quiet: no progress bar.
        sets: training and validation images, if they are already there; None takes those of the
            configuration.

    Raises:
        ValueError: the configuration, the data and the folder do not fit together.
        FileNotFoundError: the data are not there.
    """

    def __init__(
        self,
        config: Config,
        out: str | Path,
        root: str | Path | None = None,
        processes: Processes | None = None,
        workers: int = 0,
        quiet: bool = False,
        sets: tuple[Dataset[Any], Dataset[Any]] | None = None,
    ) -> None:
        self.config, self.out, self.workers = config, Path(out), workers
        self.processes = processes or Processes(0, 1, torch.device("cpu"))
        self.first = self.processes.rank == 0
        self.quiet = quiet or not self.first
        self.train_set, self.val_set = sets or feed.data_sets(config, root)
        self.per_epoch = len(self.train_set) // config.batch  # type: ignore[arg-type]
        self._expect_whole_steps()
        self.steps = config.epochs * self.per_epoch
        torch.manual_seed(config.seed)
        self.model = build_model(config.model, config.classes, **config.options)
        if config.start:
            start_from(self.model, config.start)
        self.model.to(self.processes.device)
        self.optimizer = adamw(self.model, config)
        self.average = self._average() if config.ema else None
        self.mix = None
        if config.mixup:
            self.mix = mix_batches(config.classes, mixup=config.mixup, cutmix=config.cutmix)
        self.done = 0  # steps
        self.sums = torch.zeros(3, dtype=torch.float64)  # loss, right answers, images since a row
        self.found: dict[str, float] = {}  # by the last evaluation
        self._resume()

    def _expect_whole_steps(self) -> None:
        parts = self.processes.world * self.config.micro_batches
        if self.config.batch % parts:
            raise ValueError(
                f"batch: expected a multiple of {parts} (processes × micro_batches), "
                f"got {self.config.batch}"
            )
        if not self.per_epoch:
            raise ValueError(
                f"batch: expected at most the {len(self.train_set)} "  # type: ignore[arg-type]
                f"training images, got {self.config.batch}"
            )

    def _average(self) -> AveragedModel:
        average = get_ema_multi_avg_fn(self.config.ema)
        return AveragedModel(self.model, multi_avg_fn=average, use_buffers=True)

    # --- state ---------------------------------------------------------------------------------

    def _resume(self) -> None:
        state = load_snapshot(self.out, self.config.as_dict())
        if state is None:
            return
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.done, self.sums = state["step"], state["sums"]

    def save(self) -> None:
        """Write the state after the last step; the first process does it, the others wait."""
        if self.first:
            average = None if self.average is None else self.average.state_dict()
            state = {
                "config": self.config.as_dict(),
                "step": self.done,
                "sums": self.sums,
                "model": self.model.state_dict(),
                "average": average,
                "optimizer": self.optimizer.state_dict(),
            }
            save_snapshot(self.out, state)
        self.processes.wait()

    # --- one step ------------------------------------------------------------------------------

    def step(self, net: nn.Module, images: Tensor, labels: Tensor) -> None:
        """One update from this process's share of the batch.

        Args:
            net: the model, or the model inside DistributedDataParallel.
            images: (share, 3, H, W), normalized.
            labels: (share,), int64.

        Raises:
            NonFinite: the loss or the norm of the gradient is not finite.
        """
        config, number = self.config, self.done
        rate = self.rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(feed.word(config.seed, number, self.processes.rank, 2))
        net.train()
        self.optimizer.zero_grad(set_to_none=True)
        seen = torch.zeros(3, dtype=torch.float64, device=self.processes.device)
        parts = list(zip(images.chunk(config.micro_batches), labels.chunk(config.micro_batches),
                         strict=True))  # fmt: skip
        for place, part in enumerate(parts):
            with self._together(net, last=place == len(parts) - 1):
                seen += self._backward(net, *part)
        seen = self.processes.sum(seen).cpu()
        norm = nn.utils.get_total_norm(
            [p.grad for p in self.model.parameters() if p.grad is not None]
        )
        self._expect_finite(float(seen[0] / seen[2]), float(norm), rate)
        if config.clip:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), config.clip, norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.done += 1
        self.sums += seen

    def rate(self) -> float:
        """The learning rate of the next step."""
        warmup = round(self.config.warmup_epochs * self.per_epoch)
        return rate_at(self.done, self.steps, warmup, self.config)

    def _backward(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Add the gradient of one micro-batch; (loss · images, right answers, images)."""
        device = self.processes.device
        images = images.to(device, non_blocking=True)
        labels = targets = labels.to(device, non_blocking=True)
        if self.mix is not None:
            images, targets = self.mix(images, labels)
        with self._autocast():
            scores = net(images)
        loss = F.cross_entropy(scores.float(), targets, label_smoothing=self.config.label_smoothing)
        (loss / self.config.micro_batches).backward()
        right = (scores.argmax(1) == labels).sum()
        return torch.stack([loss.detach() * len(labels), right, right.new_tensor(len(labels))])

    def _together(self, net: nn.Module, last: bool) -> AbstractContextManager:
        """Processes exchange gradients once a step, in its last micro-batch."""
        if isinstance(net, DistributedDataParallel) and not last:
            return net.no_sync()
        return nullcontext()

    def _autocast(self) -> AbstractContextManager:
        if self.config.precision == "float32":
            return nullcontext()
        return torch.autocast(self.processes.device.type, torch.bfloat16)

    def _expect_finite(self, loss: float, norm: float, rate: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        kept = self.out / NAME
        good = f"the last good snapshot is {kept}" if kept.is_file() else "no snapshot was written"
        raise NonFinite(
            f"step {self.done} (epoch {self.done // self.per_epoch}): the loss is {loss:.4g} and "
            f"the norm of the gradient {norm:.4g}, at learning rate {rate:.3g}; the run stopped "
            f"before this update and {good}. A smaller rate, a longer warm-up or precision "
            '"float32" may help'
        )

    # --- the run -------------------------------------------------------------------------------

    def run(self, watch: Callable[["Training"], None] | None = None) -> dict[str, float]:
        """Train to the end, write the weights, and give the accuracy on the validation images.

        Args:
            watch: called with this run after every step; `done` counts the steps.

        Returns:
            "accuracy" of the weights and, with a moving average, "ema accuracy".
        """
        config = self.config
        if self.first:
            self.out.mkdir(parents=True, exist_ok=True)
        self.processes.wait()
        net = self._distributed()
        log = None
        if self.first:
            log = Log(self.out / "log.csv", self.done, self.steps, self.quiet)
        for images, labels in self._batches():
            self.step(net, images, labels)
            if log is not None:
                log.bar.update()
            self._look(log)
            if watch is not None:
                watch(self)
            if self.done % config.save_every == 0 and self.done < self.steps:
                self.save()
        found = self.found or self._evaluate()  # a run that was over already has none
        if log is not None:
            log.bar.close()
        self._finish(found)
        return {name: value for name, value in found.items() if "accuracy" in name}

    def _distributed(self) -> nn.Module:
        if self.processes.world == 1:
            return self.model
        device = self.processes.device
        return DistributedDataParallel(self.model, [device] if device.type == "cuda" else None)

    def _batches(self) -> Any:
        sampler = feed.Steps(
            len(self.train_set), self.config.batch, self.config.seed,  # type: ignore[arg-type]
            self.done, self.steps, self.processes.rank, self.processes.world,
        )  # fmt: skip
        pin = self.processes.device.type == "cuda"
        return feed.loader(self.train_set, sampler, self.workers, pin)

    def _look(self, log: Log | None) -> None:
        """A row of the log where one is due, with an evaluation at the end of an epoch."""
        epoch_ends = self.done % (self.per_epoch * self.config.evaluate_every) == 0
        if self.done % self.config.log_every and not epoch_ends and self.done < self.steps:
            return
        loss, right, images = self.sums.tolist()
        values: dict[str, Any] = {
            "epoch": self.done // self.per_epoch, "rate": self.rate_of_last(),
            "loss": loss / images, "accuracy": right / images,
        }  # fmt: skip
        self.sums.zero_()
        if epoch_ends or self.done == self.steps:
            found = self.found = self._evaluate()
            values |= {"val_loss": found["loss"], "val_accuracy": found["accuracy"],
                       "ema_accuracy": found.get("ema accuracy", "")}  # fmt: skip
        if log is not None:
            log.row(self.done, int(images), **values)
            log.skip_time()

    def rate_of_last(self) -> float:
        """The learning rate of the step before."""
        return float(self.optimizer.param_groups[0]["lr"])

    def _evaluate(self) -> dict[str, float]:
        found = evaluate(self.model, self.val_set, self.processes, self.workers)
        if self.average is not None:
            smooth = evaluate(self.average.module, self.val_set, self.processes, self.workers)
            found |= {"ema loss": smooth["loss"], "ema accuracy": smooth["accuracy"]}
        return found

    def _finish(self, found: dict[str, float]) -> None:
        """The weights, with and without average; then the last snapshot, so that it is over."""
        if self.first:
            note = self.config.as_dict()
            save_weights(self.model, self.out / "weights.safetensors",
                         note | {"accuracy": found["accuracy"]})  # fmt: skip
            if self.average is not None:
                save_weights(self.average.module, self.out / "ema.safetensors",
                             note | {"accuracy": found["ema accuracy"]})  # fmt: skip
        self.save()


@torch.no_grad()
def evaluate(
    model: nn.Module, data: Any, processes: Processes | None = None, workers: int = 0,
    batch: int = 100,
) -> dict[str, float]:  # fmt: skip
    """Mean loss and share of right answers of a model on a data set.

    Each process takes every n-th image. The model is put into evaluation mode.

    Returns:
        "loss" (cross-entropy in nats), "accuracy" and "images".
    """
    here = processes or Processes(0, 1, next(model.parameters()).device)
    mine = range(here.rank, len(data), here.world)
    batches = BatchSampler(mine, batch, drop_last=False)
    sums = torch.zeros(3, dtype=torch.float64, device=here.device)
    model.eval()
    for images, labels in feed.loader(data, batches, workers, pin=here.device.type == "cuda"):
        scores, labels = model(images.to(here.device)).float(), labels.to(here.device)
        right = (scores.argmax(1) == labels).sum()
        loss = F.cross_entropy(scores, labels, reduction="sum").double()
        sums += torch.stack([loss, right, right.new_tensor(len(labels))])
    loss, right, count = here.sum(sums).tolist()
    return {"loss": loss / count, "accuracy": right / count, "images": count}
