"""One sentence for bad input: which argument, what was expected, what came."""

from torch import Tensor


def expect_tensors(**arguments: object) -> None:
    """Raise TypeError for the first argument that is not a tensor; None passes.

    Without it a list or an array would fail deep inside, far from the name of the argument.
    """
    for name, value in arguments.items():
        if value is not None and not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")


def expect_int(name: str, value: object, minimum: int) -> None:
    """Raise ValueError unless value is a whole number of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{name}: expected an integer of at least {minimum}, got {value!r}")
