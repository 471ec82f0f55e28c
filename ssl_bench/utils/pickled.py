"""Reading files of ``torch.save`` without running or trusting anything in them.

A pickle is a program that may call anything. This reader only makes dictionaries, lists, plain
values and dense tensors, never larger than the file itself. Other things that training code often
stores, such as numpy's scalars, become an inert `Left`; any other name is refused.
``torch.load(weights_only=True)`` runs no code either, but allocates whatever a few bytes ask for,
verifies no check sums, and cannot read past a numpy scalar.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_LARGEST_PICKLE = 2**23
_MOST_DIMENSIONS = 64
_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
    # Storages of quantised tensors, which become `Left`.
    "QInt8Storage": torch.int8,
    "QUInt8Storage": torch.uint8,
    "QInt32Storage": torch.int32,
}
_MODULES = (
    *("torch", "collections", "numpy", "argparse", "pathlib", "typing", "datetime", "enum"),
    *("omegaconf", "lightning", "lightning_fabric", "pytorch_lightning"),
)
"""Modules whose names training code leaves in its files. None of them is imported."""
_JAX = {"jax", "jaxlib", "haiku", "flax", "optax", "chex", "byol"}
"""Modules whose names JAX code leaves in its files."""
CONVERTED = "its weights, saved by torch.save under timm's names, would work"
_BUILTINS = {
    *("set", "frozenset", "list", "dict", "tuple", "slice", "range"),
    *("bytes", "bytearray", "str", "int", "float", "bool", "complex"),
}
_PLAIN = (str, int, float, bool, bytes, type(None))


class Unreadable(Exception):
    """Why a file cannot be read; the message follows "it cannot be read as weights"."""


@dataclass(frozen=True)
class Left:
    """An inert stand-in for an object that was not loaded.

    Attributes:
        name: of its class or function, such as ``numpy.core.multiarray.scalar``.
    """

    name: str


class Flags(dict[str, Any]):
    """The content of an ``argparse.Namespace``."""


@dataclass(frozen=True)
class _Storage:
    content: Tensor
    """Bytes."""
    dtype: torch.dtype


def read(path: Path) -> Any:
    """Read a file's content, tensors on the CPU.

    Check sums of a zip archive are verified, if ``torch.save`` wrote any.

    Raises:
        Unreadable: it is damaged, malicious, not of ``torch.save``, or holds pickled code.
        OSError: the system cannot read it.
        Exception: damage may also raise any other error.
    """
    with path.open("rb") as file:
        if zipfile.is_zipfile(file):
            return _Archive(file).load()
        file.seek(0)
        return _read_old(file)


class _Budget:
    """Memory for tensors, at most as much as the file's size."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._left = file.seek(0, io.SEEK_END)

    def bytes_(self, size: int) -> Tensor:
        self._left -= size
        _require(size >= 0 and self._left >= 0, "its tensors are larger than the file itself")
        return torch.empty(size, dtype=torch.uint8)


class _Archive:
    """An uncompressed zip archive of ``data.pkl`` and one record per storage."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file, self._budget = file, _Budget(file)
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
        self._entries = {entry.filename: entry for entry in entries}
        _require(len(entries) == len(self._entries), "it holds two records of one name")
        found = map(re.compile(r"([^/]*/)?data\.pkl").fullmatch, self._entries)
        roots = [each[1] or "" for each in found if each]
        _require(len(roots) == 1, "it is a zip archive, but none that torch.save wrote")
        self._root = roots[0]
        # If torch was set to write no check sums, all of them are zero.
        self._is_checked = any(entry.CRC for entry in entries)
        self._storages: dict[str, Tensor] = {}

    def load(self) -> Any:
        order = f"{self._root}byteorder"
        if order in self._entries and self._record(order).numpy().tobytes() != _ORDER:
            raise Unreadable("it was written on a machine with the other order of bytes")
        if f"{self._root}constants.pkl" in self._entries:
            raise Unreadable("it is a TorchScript archive, which holds code; save its state_dict")
        name = f"{self._root}data.pkl"
        _require(self._entries[name].file_size <= _LARGEST_PICKLE, _TOO_LARGE)
        content = self._record(name).numpy().tobytes()
        return _Unpickler(io.BytesIO(content), self._storage).load()

    def _storage(self, key: str, size: int) -> Tensor:
        if key not in self._storages:
            self._storages[key] = self._record(f"{self._root}data/{key}")
        _require(len(self._storages[key]) == size, f"it is damaged: data/{key} has another size")
        return self._storages[key]

    def _record(self, name: str) -> Tensor:
        entry = self._entries[name]
        is_plain = entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 1
        _require(is_plain, "its records are compressed or encrypted, and those of torch never are")
        content = self._budget.bytes_(entry.file_size)
        self._file.seek(entry.header_offset)
        header = self._file.read(30)
        _require(header[:4] == b"PK\x03\x04", f"it is damaged: {name} is not where it should be")
        lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:], "little")
        self._file.seek(lengths, io.SEEK_CUR)
        view = content.numpy().data
        _require(self._file.readinto(view) == len(view), f"it is damaged: {name} is cut short")
        is_whole = not self._is_checked or zlib.crc32(view) == entry.CRC
        _require(is_whole, f"it is damaged: {name} differs from its check sum")
        return content


_ORDER = sys.byteorder.encode()
_TOO_LARGE = f"it describes its content in more than {_LARGEST_PICKLE} bytes"


def _read_old(file: io.BufferedReader) -> Any:
    """The format before torch 1.6, still optional: four pickles, names of storages, storages."""
    budget, storages = _Budget(file), dict[str, Tensor]()

    def storage(key: str, size: int) -> Tensor:
        if key not in storages:
            storages[key] = budget.bytes_(size)
        _require(len(storages[key]) == size, f"it is damaged: storage {key} has two sizes")
        return storages[key]

    file.seek(0)
    start = io.BytesIO(file.read(_LARGEST_PICKLE))
    unpickler = _Unpickler(start, storage)
    is_known = _Unpickler(start, storage).load() == _MAGIC
    _require(is_known, f"it is a pickle, but none that torch.save wrote; {CONVERTED}")
    _Unpickler(start, storage).load()  # the version, which has always been the same
    system = _Unpickler(start, storage).load()
    order = "little" if system["little_endian"] else "big"
    _require(order == sys.byteorder, "it was written on a machine with the other order of bytes")
    content = unpickler.load()
    keys = _Unpickler(start, storage).load()
    file.seek(start.tell())
    for key in keys:
        count = int.from_bytes(file.read(8), "little")
        view = storages[str(key)].numpy().data
        is_whole = count * unpickler.sizes[str(key)] == len(view) == file.readinto(view)
        _require(is_whole, f"it is damaged or cut short in storage {key}")
    _require(sorted(storages) == sorted(map(str, keys)), "it is damaged: a storage is missing")
    return content


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise Unreadable(problem)


class _Unpickler(pickle._Unpickler):
    """Python's pure-Python unpickler, with control over every call, name and change.

    (The one in C allocates whatever a single index asks for.)

    Attributes:
        sizes: bytes per element of each storage.
    """

    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: io.BytesIO, storage: Callable[[str, int], Tensor]) -> None:
        super().__init__(file, encoding="latin1")
        self._storage, self.sizes = storage, dict[str, int]()

    def find_class(self, module: str, name: str) -> Left:
        full, top = f"{module}.{name}", module.partition(".")[0]
        is_builtin = module in ("builtins", "__builtin__") and name in _BUILTINS
        if full == "_codecs.encode" or is_builtin or top in _MODULES:
            return Left(full)
        if top in _JAX:
            raise Unreadable(f"it is of JAX ({full}), as BYOL's official files are; {CONVERTED}")
        raise Unreadable(
            f"it holds pickled code ({full}), which is not run; save its tensors alone"
        )

    def persistent_load(self, pid: Any) -> Any:
        kind, name, key, _, count, *view = pid
        is_storage = kind == "storage" and type(count) is int and view in ([], [None])
        what = name.name if isinstance(name, Left) else "nothing"
        dtype = _DTYPES.get(what.rpartition(".")[2])
        if not is_storage or dtype is None:
            raise Unreadable(
                f"it holds tensors of an unknown kind ({what}); save its weights alone"
            )
        self.sizes[str(key)] = dtype.itemsize
        return _Storage(self._storage(str(key), count * dtype.itemsize), dtype)

    def made(self, what: Any, arguments: Any) -> Any:
        """The result of a call or of making an object."""
        if not isinstance(what, Left) or not isinstance(arguments, tuple):
            raise Unreadable("it calls what is nothing to call")
        name = what.name
        if name == "collections.OrderedDict":
            content: dict[Any, Any] = {}
            for key, value in arguments[0] if arguments else ():
                _put(content, key, value)
            return content
        if name == "argparse.Namespace":
            return Flags()
        if name == "torch.Size":
            return tuple(arguments[0]) if arguments else ()
        if name in ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"):
            return _tensor(*arguments[:4])
        if name == "torch._utils._rebuild_tensor_v3":
            return _tensor(*arguments[:4], *arguments[6:7])
        if name.startswith("torch._utils._rebuild_parameter"):
            return arguments[0]
        if name == "torch._tensor._rebuild_from_type_v2":
            return self.made(arguments[0], arguments[2])
        return what

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = self.made(self.stack[-1], arguments)

    def load_newobj_ex(self) -> None:
        self.stack.pop()
        self.load_reduce()

    def load_build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Flags) and isinstance(state, dict):
            self.stack[-1].update(state)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._put_all([key, value])

    def load_setitems(self) -> None:
        self._put_all(self.pop_mark())

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._put_all(items)

    def _put_all(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                _put(self.stack[-1], key, value)

    def load_append(self) -> None:
        value = self.stack.pop()
        if isinstance(self.stack[-1], list):
            self.stack[-1].append(value)

    def load_appends(self) -> None:
        values = self.pop_mark()
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(values)

    def load_frozenset(self) -> None:
        self.append(self.pop_mark())


def _put(content: dict[Any, Any], key: Any, value: Any) -> None:
    """Store the value under a plain key only, as nested tuples can take forever to hash."""
    if isinstance(key, _PLAIN):
        content[key] = value


_NOT_READ = {
    *("load_ext1", "load_ext2", "load_ext4", "load_inst", "load_obj", "load_persid"),
    *("load_bytearray8", "load_next_buffer", "load_readonly_buffer"),
}
"""Registered extensions, classes of Python 1, and buffers that may ask for any size."""
_own: Any = _Unpickler  # typeshed only knows the C unpickler's attributes
_own.dispatch = {
    **{
        code: getattr(_own, load.__name__)
        for code, load in _own.dispatch.items()
        if load.__name__ not in _NOT_READ
    },
    # A new object is what a call makes.
    pickle.NEWOBJ[0]: _own.load_reduce,
    # A set becomes a list, so its items need not be hashed.
    pickle.EMPTY_SET[0]: _own.load_empty_list,
    pickle.ADDITEMS[0]: _own.load_appends,
}


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, dtype: Any = None) -> Tensor | Left:
    """The tensor; `Left` if its kind is unknown or it would have more numbers than its storage."""
    if not isinstance(storage, _Storage):
        return Left("a tensor of an unknown kind")
    if dtype is not None:
        known = getattr(torch, dtype.name.rpartition(".")[2], None)
        if not isinstance(known, torch.dtype):
            return Left(f"a tensor of {dtype.name}")
        dtype = known
    numbers = storage.content.view(dtype or storage.dtype)
    shape = (*size, *stride, offset)
    _require(
        len(size) == len(stride) <= _MOST_DIMENSIONS
        and all(type(n) is int and 0 <= n < 2**48 for n in shape),
        "it is damaged: a tensor has no shape",
    )
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    is_inside = 0 in size or last < len(numbers)
    _require(is_inside, "it is damaged: a tensor reaches beyond what is stored")
    if math.prod(size) > len(numbers):
        return Left("a tensor that repeats itself")
    return numbers.as_strided(size, stride, offset)
