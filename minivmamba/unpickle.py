"""Read a pickle without running it.

A pickle is a program for a small stack machine. Most instructions build lists and dicts; GLOBAL
imports a name and REDUCE calls it, so that whoever writes the file decides what runs when it is
read. The machine below has the same instructions, but imports and calls nothing: a name stays a
`Name`, a call that was asked for becomes a `Note` of it. What the file says about its tensors can
then be read from the notes (checkpoint_reader.py), whatever other objects lie beside them.

The instructions are decoded by `pickletools.genops` of the standard library, which runs none.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from pickle import UnpicklingError
from typing import IO, Any

# A training checkpoint of VMamba-B with two copies and an optimizer needs about 100,000.
MAX_INSTRUCTIONS = 1_000_000


@dataclass(frozen=True)
class Name:
    """A class or function that the pickle names, as "module.name"; it is not imported."""

    path: str


@dataclass(eq=False)
class Note:
    """A call that the pickle asks for and that is not made, and what was to be filled in then."""

    path: str
    arguments: tuple
    entries: dict[str, Any] = field(default_factory=dict)  # items, if it was to be a kind of dict
    state: Any = None


@dataclass(frozen=True)
class Storage:
    """Numbers that lie outside the pickle: the path of their kind, their name and how many."""

    kind: str
    key: str
    size: int


def read_pickle(stream: IO[bytes]) -> tuple[Any, dict[str, Storage]]:
    """The object at the position of a stream, which is left behind it, and its storages by key.

    Of a dict only the entries whose keys are strings are kept. A set comes as a list.

    Raises UnpicklingError if the bytes are no pickle or a damaged one, or ask for something that a
    checkpoint does not need.
    """
    machine = _Machine()
    try:
        for count, (code, argument, _) in enumerate(pickletools.genops(stream)):
            if count == MAX_INSTRUCTIONS:
                raise UnpicklingError(f"more than {MAX_INSTRUCTIONS} instructions")
            if code.name == "STOP":
                return machine.stack.pop(), machine.storages
            machine.step(code.name, argument)
    except (ValueError, TypeError, LookupError, OverflowError, MemoryError) as error:
        raise UnpicklingError(f"damaged ({type(error).__name__})") from error
    raise UnpicklingError("no end")


def is_size(value: Any) -> bool:
    """Whether this is a number that a tensor can have as size, stride or offset."""
    return type(value) is int and 0 <= value < 2**63


_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BYTEARRAY8"),
}
_FRESH: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_SET": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
}
# Instructions that do the same here.
_ALIASES = {
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), "PUT"),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), "GET"),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), "EXTEND"),
    **dict.fromkeys(("PROTO", "FRAME"), "NOTHING"),
    "FROZENSET": "LIST",
    "NEWOBJ": "REDUCE",
}


class _Machine:
    """The stack, the memo, and one method an instruction. No method calls what is on the stack."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below the marks
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def step(self, name: str, argument: Any) -> None:
        name = _ALIASES.get(name, name)
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _FRESH:
            self.stack.append(_FRESH[name]())
        elif method := getattr(self, f"do_{name.lower()}", None):
            method(argument)
        else:  # EXT1 and its like, persistent ids as text, buffers beside the file
            raise UnpicklingError(f"instruction {name}")

    def do_nothing(self, _: Any) -> None:
        """The version of the format, and frames, which only help to read ahead."""

    # ---- the stack and the memo

    def do_mark(self, _: None) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def do_pop(self, _: None) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.since_mark()

    def do_pop_mark(self, _: None) -> None:
        self.since_mark()

    def do_dup(self, _: None) -> None:
        self.stack.append(self.stack[-1])

    def do_put(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    def do_memoize(self, _: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def do_get(self, place: int) -> None:
        self.stack.append(self.memo[place])

    # ---- containers

    def do_tuple(self, _: None) -> None:
        items = self.since_mark()  # first: it changes what self.stack is
        self.stack.append(tuple(items))

    def do_tuple1(self, _: None) -> None:
        self.stack.append((self.stack.pop(),))

    def do_tuple2(self, _: None) -> None:
        second = self.stack.pop()
        self.stack.append((self.stack.pop(), second))

    def do_tuple3(self, _: None) -> None:
        third, second = self.stack.pop(), self.stack.pop()
        self.stack.append((self.stack.pop(), second, third))

    def do_list(self, _: None) -> None:
        items = self.since_mark()
        self.stack.append(items)

    def do_dict(self, _: None) -> None:
        items = self.since_mark()
        self.stack.append({})
        self.fill(items)

    def do_append(self, _: None) -> None:
        self.extend([self.stack.pop()])

    def do_extend(self, _: None) -> None:
        self.extend(self.since_mark())

    def do_setitem(self, _: None) -> None:
        value = self.stack.pop()
        self.fill([self.stack.pop(), value])

    def do_setitems(self, _: None) -> None:
        self.fill(self.since_mark())

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Note):
            raise UnpicklingError(f"items for a {type(target).__name__}")

    def fill(self, items: list[Any]) -> None:
        target = self.stack[-1]
        entries = target.entries if isinstance(target, Note) else target
        if not isinstance(entries, dict):
            raise UnpicklingError(f"entries for a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # No weight has another kind of name, and Python's hash of tuples nested in each other
            # can take for ever.
            if type(key) is str:
                entries[key] = value

    # ---- what would import and call

    def do_global(self, names: str) -> None:
        self.stack.append(Name(names.replace(" ", ".", 1)))

    def do_stack_global(self, _: None) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise UnpicklingError("a name that is no text")
        self.stack.append(Name(f"{module}.{name}"))

    def do_reduce(self, _: None) -> None:
        arguments = self.stack.pop()
        self.note(self.stack.pop(), arguments)

    def do_newobj_ex(self, _: None) -> None:
        self.stack.pop()  # keyword arguments
        self.do_reduce(None)

    def do_obj(self, _: None) -> None:
        items = self.since_mark()
        self.note(items[0], tuple(items[1:]))

    def do_inst(self, names: str) -> None:
        arguments = tuple(self.since_mark())
        self.note(Name(names.replace(" ", ".", 1)), arguments)

    def note(self, called: Any, arguments: Any) -> None:
        if not isinstance(arguments, tuple):
            raise UnpicklingError("arguments that are no tuple")
        path = called.path if isinstance(called, Name | Note) else type(called).__name__
        ordered = path == "collections.OrderedDict" and not arguments
        self.stack.append({} if ordered else Note(path, arguments))

    def do_build(self, _: None) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Note):
            self.stack[-1].state = state  # that of a dict (its _metadata) is dropped

    def do_binpersid(self, _: None) -> None:
        """An object outside the pickle: for PyTorch a storage, or long ago a module's class."""
        kind, *rest = self.stack.pop()
        if kind == "module":
            self.stack.append(rest[0])
            return
        if kind != "storage":
            raise UnpicklingError("an outside object that is no storage")
        of, key, _location, size, *view = rest
        if not isinstance(of, Name) or type(key) is not str or not is_size(size):
            raise UnpicklingError("a storage without kind, name or size")
        if any(part is not None for part in view):
            raise UnpicklingError("a view of a storage, as PyTorch before 0.4 wrote them")
        storage = Storage(of.path, key, size)
        if self.storages.setdefault(key, storage) != storage:
            raise UnpicklingError(f"two sizes of storage {key[:40]!r}")
        self.stack.append(storage)
