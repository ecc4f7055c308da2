"""Files of weights: which kind it is, what it describes, and where its numbers are.

    zip archive       torch.save since 1.6: data.pkl describes the tensors, data/0, data/1, … hold
                      their numbers
    pickle            torch.save before: the same description, the numbers behind it
    safetensors       a table of names, shapes and places, then the numbers

The first bytes tell them apart, not the name. Nothing in a file runs, see unpickle.py.
"""

import io
import mmap
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from minivmamba.unpickle import Storage, read_pickle


class CheckpointError(ValueError):
    """Weights that cannot be read, or do not fit the model; the model is unchanged."""


@dataclass
class Archive:
    """What a file describes, and how to read the numbers of a storage."""

    content: Any
    data: Callable[[Storage], bytes]
    read: dict[str, bytearray] = field(default_factory=dict)  # by the storage's key


def no_data(storage: Storage) -> bytes:
    raise CheckpointError("a description of a tensor without its numbers")


def shown(name: str) -> str:
    """A name from a file for a message: on one line, and not too long."""
    return name if name.isprintable() and len(name) <= 80 else repr(name[:80])


_DTYPES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
}
KINDS = {
    f"torch.{device}{name}Storage": dtype
    for name, dtype in _DTYPES.items()
    for device in ("", "cuda.")
}

_AGAIN = "the file is damaged or incomplete, fetch it again"
_STRANGERS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: run `git lfs pull`"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"BZh", "a bzip2 archive: unpack it first"),
    (b"\xfd7zXZ", "an xz archive: unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it first"),
    (b"\x89HDF", "an HDF5 file, as other libraries write"),
)
_EXPECTED = "expected a file of torch.save or safetensors"


@contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """The content of a file, for as long as its numbers are to be read.

    Raises FileNotFoundError, another OSError if it must not be read, or CheckpointError.
    """
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    if not path.is_file():
        raise CheckpointError(f"{_EXPECTED}, got {'a folder' if path.is_dir() else 'no file'}")
    with path.open("rb") as file:
        start = file.read(512)
        file.seek(0)
        if not start:
            raise CheckpointError(f"{_EXPECTED}, got an empty file")
        if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            with _zip(file) as archive:
                yield archive
        elif start[8:9] == b"{":
            yield Archive(_safetensors(path), no_data)
        elif start[:1] == b"\x80":
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                yield _pickles(view)
        else:
            raise CheckpointError(f"{_EXPECTED}, got {_stranger(start)}")


def _stranger(start: bytes) -> str:
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "an HTML page: the download failed, fetch the file again"
    if start[257:262] == b"ustar":
        return "a tar archive: unpack it first"
    for mark, kind in _STRANGERS:
        if start.startswith(mark):
            return kind
    return f"something that starts with {start[:8]!r}"


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "a safetensors file needs safetensors: pip install safetensors; "
            "files of torch.save can be read without it"
        ) from error
    try:
        return load_file(path)
    # Beside its own error the library has KeyError for types of number that PyTorch lacks, and
    # others for headers that are no text.
    except (SafetensorError, KeyError, ValueError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"expected a safetensors file, got a bad one: {_AGAIN}") from error


# What zipfile raises for damage of one kind or another.
_BAD_ZIP = (
    *(zipfile.BadZipFile, zlib.error, EOFError, OSError, struct.error),
    *(RuntimeError, NotImplementedError, ValueError, OverflowError, MemoryError),
)


@contextmanager
def _zip(file: io.BufferedReader) -> Iterator[Archive]:
    try:
        with zipfile.ZipFile(file) as archive:
            names, limit = set(archive.namelist()), os.fstat(file.fileno()).st_size
            prefix = _prefix(names)

            def record(name: str) -> bytes:
                return _record(archive, prefix + name, limit)

            if prefix + "byteorder" in names and record("byteorder") != b"little":
                raise CheckpointError("expected numbers in little-endian order, got another")
            content, _ = read_pickle(io.BytesIO(record("data.pkl")))
            yield Archive(content, lambda storage: record(f"data/{storage.key}"))
    except CheckpointError:
        raise
    except UnpicklingError as error:
        raise CheckpointError(f"expected a pickle in data.pkl, got a bad one: {error}") from error
    except _BAD_ZIP as error:
        raise CheckpointError(f"expected a zip archive, got a bad one: {_AGAIN}") from error


def _prefix(names: set[str]) -> str:
    """The folder, with its slash, in which torch.save puts everything."""
    folders = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")]
    if any(name.endswith("/constants.pkl") for name in names):
        raise CheckpointError(
            "expected weights, got a TorchScript program; save the state_dict() of its model"
        )
    if len(folders) != 1:
        raise CheckpointError(
            "expected one data.pkl in the zip archive, as torch.save writes, "
            f"got {len(folders) or 'none'}; unpack an ordinary archive first"
        )
    return folders[0]


def _record(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    try:
        entry = archive.getinfo(name)
    except KeyError as error:
        raise CheckpointError(f"expected a record {shown(name)}, got none: {_AGAIN}") from error
    if entry.compress_type != zipfile.ZIP_STORED:  # torch.save compresses nothing; a bomb does
        raise CheckpointError(f"expected a plain record {shown(name)}, got a compressed one")
    if entry.file_size != entry.compress_size or entry.file_size > limit:
        raise CheckpointError(f"expected record {shown(name)} whole, got less: {_AGAIN}")
    return archive.read(entry)


_MAGIC = (0x1950A86A20F9469CFC6C, 1001)  # torch.serialization's number, and its only version


def _pickles(file: mmap.mmap) -> Archive:
    """Four pickles: magic number, version, machine, object; then names and numbers of storages."""
    places: dict[str, tuple[int, int]] = {}

    def data(storage: Storage) -> bytes:
        if storage.key not in places:
            raise CheckpointError(f"expected storage {shown(storage.key)}, got none: {_AGAIN}")
        begin, end = places[storage.key]
        return file[begin:end]

    try:
        stream: Any = file  # has read, readline and tell, which is what is needed of a file
        magic, _ = read_pickle(stream)
        if magic != _MAGIC[0] or read_pickle(stream)[0] != _MAGIC[1]:
            raise CheckpointError(f"{_EXPECTED}, got a pickle of something else")
        machine, _ = read_pickle(stream)
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise CheckpointError("expected numbers in little-endian order, got another")
        content, storages = read_pickle(stream)
        keys, _ = read_pickle(stream)
    except UnpicklingError as error:
        raise CheckpointError(f"expected a pickle, got a bad one: {error}") from error
    if not isinstance(keys, list) or not all(type(key) is str and key in storages for key in keys):
        raise CheckpointError(f"expected a list of storages, got another: {_AGAIN}")
    for key in keys:
        count = int.from_bytes(file.read(8), "little")
        dtype = KINDS.get(storages[key].kind, torch.uint8)
        begin = file.tell()
        end = begin + count * dtype.itemsize
        if count != storages[key].size or end > len(file):
            raise CheckpointError(f"expected storage {shown(key)} whole, got less: {_AGAIN}")
        places[key] = begin, end
        file.seek(end)
    return Archive(content, data)
