"""What a training run is: one frozen record, read from a TOML file."""

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minivmamba.expect import expect_int, expect_positive, expect_rate

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent / "configs"
DATA = ("folder", "class", "relation")
PRECISIONS = ("float32", "bfloat16")
DECAYS = ("intended", "authors")


@dataclass(frozen=True, kw_only=True)
class Config:
    """A training run. Everything that its result depends on is here; where it runs is not.

    Args:
        model: a constructor of minivmamba or minivmamba.small_models, by name.
        options: further arguments of that constructor, such as drop_path_rate.
        classes: number of classes.
        start: a file of weights of this model that the run begins from; a classifier of another
            size begins anew. Empty: from a random state.
        data: "folder" for the user's own images, or a task of photo-digits: "class", "relation".
        size: side of the training images in pixels.
        images: photo-digits only, number of training scenes.
        val_images: photo-digits only, number of scenes to evaluate on.
        distance: photo-digits "relation" only, "near" or "far".
        magnitude, erasing: folder only, for `data.train_transform`.
        mixup, cutmix: parameters for `data.mix_batches`; both 0 leave the images as they are.
        epochs: passes over the training images.
        batch: images of a step, of all processes and micro-batches together.
        micro_batches: parts into which a process cuts its share of a step, to save memory.
        rate, first_rate, last_rate: learning rate at the end of the warm-up, at its beginning and
            at the end of the run, for a step of `rate_batch` images; all scale with batch.
        rate_batch: see rate; 0 takes the rates as they are.
        warmup_epochs: length of the linear warm-up.
        weight_decay: of AdamW, for weights proper.
        decay: "intended" leaves A_logs, Ds, biases, norms and position embeddings undecayed;
            "authors" decays A_logs and dt_projs_bias too, as their optimizer in fact does.
        clip: largest norm of the gradient; 0 for none.
        label_smoothing: share of the target that is spread over all classes.
        ema: decay of the moving average of the weights per step; 0 for none.
        precision: "bfloat16" runs products under autocast; the scan stays in float32.
        shuffle_labels: a control: the labels of the training images, permuted.
        seed: of everything random.
        save_every, log_every: steps between snapshots, and between rows of the log.
        evaluate_every: epochs between evaluations; the last epoch is always evaluated.
    """

    model: str
    options: dict[str, Any] = field(default_factory=dict)
    classes: int
    start: str = ""
    data: str = "folder"
    size: int = 224
    images: int = 20_000
    val_images: int = 1_980
    distance: str = "far"
    magnitude: int = 9
    erasing: float = 0.25
    mixup: float = 0.0
    cutmix: float = 0.0
    epochs: int = 300
    batch: int = 1024
    micro_batches: int = 1
    rate: float = 5e-4
    first_rate: float = 5e-7
    last_rate: float = 5e-6
    rate_batch: int = 512
    warmup_epochs: float = 20
    weight_decay: float = 0.05
    decay: str = "intended"
    clip: float = 5.0
    label_smoothing: float = 0.1
    ema: float = 0.9999
    precision: str = "float32"
    shuffle_labels: bool = False
    seed: int = 0
    save_every: int = 500
    log_every: int = 50
    evaluate_every: int = 1

    def __post_init__(self) -> None:
        for name in ("classes", "size", "images", "val_images", "epochs", "batch", "micro_batches",
                     "save_every", "log_every", "evaluate_every"):  # fmt: skip
            expect_int(name, getattr(self, name), minimum=1)
        for name in ("seed", "rate_batch"):
            expect_int(name, getattr(self, name), minimum=0)
        for name in ("rate", "first_rate", "last_rate"):
            expect_positive(name, getattr(self, name))
        for name in ("label_smoothing", "ema", "erasing"):
            expect_rate(name, getattr(self, name))
        for name in ("mixup", "cutmix", "warmup_epochs", "weight_decay", "clip"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
                raise ValueError(f"{name}: expected a number of at least 0, got {value!r}")
        if not self.warmup_epochs < self.epochs:
            raise ValueError(
                f"warmup_epochs: expected fewer than the {self.epochs} epochs of the run, "
                f"got {self.warmup_epochs}"
            )
        for name, allowed in (("data", DATA), ("precision", PRECISIONS), ("decay", DECAYS)):
            if getattr(self, name) not in allowed:
                words = ", ".join(map(repr, allowed))
                raise ValueError(f"{name}: expected one of {words}, got {getattr(self, name)!r}")
        if (self.mixup > 0) != (self.cutmix > 0):
            raise ValueError(
                "mixup, cutmix: expected both above 0 or both 0, "
                f"got {self.mixup} and {self.cutmix}"
            )
        if self.batch % self.micro_batches:
            raise ValueError(
                f"micro_batches: expected a divisor of batch {self.batch}, got {self.micro_batches}"
            )

    def replace(self, **changes: Any) -> "Config":
        """The same run with some entries changed; TypeError if there is no such entry."""
        return dataclasses.replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def list_configs() -> list[str]:
    """Names of the configurations that come with the book."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_config(source: str | Path, **changes: Any) -> Config:
    """A configuration of the book by name, or a TOML file by path; `changes` replace entries.

    Raises:
        FileNotFoundError: there is no such configuration.
        ValueError: it is not TOML, an entry is unknown or missing, or out of range.
    """
    path = FOLDER / f"{source}.toml"
    if not path.is_file():
        path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(
            f"config: expected a TOML file or one of {', '.join(list_configs())}; "
            f"got {str(source)!r}"
        )
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"config: expected TOML in {str(path)!r}: {error}") from error
    entries |= changes
    known = {entry.name for entry in dataclasses.fields(Config)}
    if strangers := sorted(set(entries) - known):
        raise ValueError(
            f"config: {', '.join(strangers)} in {str(path)!r} is no entry; "
            f"expected some of {', '.join(sorted(known))}"
        )
    missing = [name for name in ("model", "classes") if name not in entries]
    if missing:
        raise ValueError(f"config: expected an entry {missing[0]} in {str(path)!r}, got none")
    return Config(**entries)
