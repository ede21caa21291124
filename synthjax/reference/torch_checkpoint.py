"""Reads checkpoints of PyTorch Lightning without PyTorch, and without running anything that is in them.

Such a file is a zip archive of NAME/data.pkl, a pickle of protocol 2, and NAME/data/KEY, the bytes of each storage,
none of them compressed (torch.save since PyTorch 1.6). A pickle is a program that may call any function that it names.
Two guards stand before it. First, ``check_opcodes`` reads the opcodes without running them and refuses those that
PyTorch does not write. Then ``_Unpickler`` refuses unexpected names and imports none of the others: it describes
tensors, and puts an empty object for all else that Lightning keeps beside the weights (modules, optimizers, configs).
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import jax.numpy as jnp
import numpy as np

from data_pipeline.console.cli import UserError
from data_pipeline.console.os_errors import why_unreadable

# Forty times the pickle of the largest model here with its optimizer. An opcode of one byte may take 100 in memory.
MAX_PICKLE_BYTES = 4 << 20
MAX_NESTING = 200
MAX_DIMENSIONS = 8
MAX_STEP = 2**63
LARGE = 2**31  # Integers from here on may be made to share one hash.

DTYPES: dict[str, np.dtype] = {
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": np.dtype(jnp.bfloat16),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
}
# The names that Lightning's checkpoints may hold: containers, tensors, and the classes of hyperparameters, callbacks
# and modules, among them those of the PyTorch reference (its package is called src).
EXPECTED = re.compile(
    r"""argparse\.Namespace | collections\.\w+ | datetime\.\w+ | functools\.partial | pathlib\.\w+ | typing\.\w+
    | (builtins|__builtin__)\.(bool|bytearray|bytes|complex|dict|float|frozenset|int|list|object|range|set|slice|str)
    | (builtins|__builtin__)\.(tuple|type) | _codecs\.encode
    | torch\.(\w+Storage|Size|Tensor|bool|device|(b?float|complex|u?int)\d+) | torch\._utils\._rebuild_\w+
    | torch\._C\._nn\.\w+ | torch\.(nn|optim)\.[\w.]+
    | numpy\.(dtype|ndarray) | numpy\._?core\.multiarray\.(_reconstruct|scalar)
    | (lightning|lightning_\w+|omegaconf|pytorch_lightning|src|torchmetrics)\.[\w.]+""",
    re.VERBOSE | re.ASCII,
)
# The opcodes of protocol 2 that PyTorch writes, by their names in pickletools.
CONTAINERS = {"EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
FILLS = {"APPEND", "APPENDS", "SETITEM", "SETITEMS"}
NUMBERS = {"BININT", "BININT1", "BININT2", "LONG1", "LONG4"}
PUTS, GETS = {"BINPUT", "LONG_BINPUT"}, {"BINGET", "LONG_BINGET"}
CALLS = {"GLOBAL", "BINPERSID", "REDUCE", "NEWOBJ", "BUILD"}
OTHERS = {"PROTO", "NONE", "NEWTRUE", "NEWFALSE", "BINFLOAT", "BINUNICODE", "MARK", "POP", "STOP"}
OPCODES = CONTAINERS | FILLS | NUMBERS | PUTS | GETS | CALLS | OTHERS

WEIGHT_NAME = re.compile(r"[\w.]+", re.ASCII)
# The errors of zipfile for archives that are damaged, or use features that PyTorch never does.
ZIP_ERRORS = (zipfile.BadZipFile, EOFError, NotImplementedError, OverflowError, RuntimeError, struct.error)


@dataclass(frozen=True)
class TorchCheckpoint:
    """Weights by their names in the file's ``state_dict``, and the number of steps that they were trained."""

    weights: dict[str, np.ndarray]
    global_step: int


def read_checkpoint(path: str | Path) -> TorchCheckpoint:
    """Reads the weights of a checkpoint, views of no more memory than the file takes.

    Raises:
      UserError: for a file that is missing, damaged or no such checkpoint, or that would run code in PyTorch.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not a file" if path.exists() else f"{path} does not exist")
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(_Archive(archive, path.stat().st_size))
    except (OSError, ValueError, *ZIP_ERRORS) as error:
        damage = "is no checkpoint of PyTorch Lightning that can be read"
        raise UserError(f"{path} {why_unreadable(error, damage)}") from error


def _read(archive: _Archive) -> TorchCheckpoint:
    saved = unpickle(archive.read("data.pkl", MAX_PICKLE_BYTES))
    if not isinstance(saved, dict) or not isinstance(saved.get("state_dict"), dict):
        raise ValueError("it holds no state_dict")
    step = saved.get("global_step")
    if not _is_natural(step) or step >= MAX_STEP:
        raise ValueError("it holds no global_step")
    weights = {name: _read_weight(archive, name, value) for name, value in saved["state_dict"].items()}
    if sum(array.nbytes for array in weights.values()) > archive.size:
        raise ValueError("its weights overlap: they are larger than the file")
    return TorchCheckpoint(weights, step)


def _read_weight(archive: _Archive, name: object, value: object) -> np.ndarray:
    if not isinstance(name, str) or not WEIGHT_NAME.fullmatch(name):
        raise ValueError(f"its state_dict has the key {name!a:.80}")
    if not isinstance(value, _Tensor):
        raise ValueError(f"{name} is not a tensor")
    try:
        return _view(value, archive.storage(value.storage))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _view(tensor: _Tensor, values: np.ndarray) -> np.ndarray:
    """The elements of ``values`` (N,) that a tensor's shape and strides choose."""
    shape, strides, offset = tensor.shape, tensor.strides, tensor.offset
    if not isinstance(shape, tuple) or not isinstance(strides, tuple) or len(shape) > MAX_DIMENSIONS:
        raise ValueError("its shape is malformed")
    if len(shape) != len(strides) or not all(map(_is_natural, (offset, *shape, *strides))):
        raise ValueError("its shape is malformed")
    size = math.prod(shape)
    last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    if max(size, last + 1 if size else offset) > len(values):
        raise ValueError("it reaches beyond its storage")
    return np.lib.stride_tricks.as_strided(values[offset:], shape, [stride * values.itemsize for stride in strides])


def _is_natural(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


class _Archive:
    """The entries of a checkpoint's archive, none larger than the file itself."""

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        self.size = size
        self._archive = archive
        names = archive.namelist()
        if len(names) > len(set(names)):
            raise ValueError("the archive has two entries of one name")
        folders = [name.removesuffix("/data.pkl") for name in names if name.endswith("/data.pkl")]
        if len(folders) != 1:
            raise ValueError("the archive has no data.pkl" if not folders else "the archive has several data.pkl")
        self._folder = folders[0]
        self._storages: dict[tuple[str, str], np.ndarray] = {}
        # PyTorch before 2.1 writes no such entry.
        if f"{self._folder}/byteorder" in names and self.read("byteorder", len("little")) != b"little":
            raise ValueError("its numbers are big-endian")

    def read(self, name: str, limit: int | None = None) -> bytes:
        """The bytes of an entry, checked against their checksum."""
        try:
            entry = self._archive.getinfo(f"{self._folder}/{name}")
        except KeyError:
            raise ValueError(f"the archive lacks {name!a:.80}") from None
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise ValueError(f"its entry {name!a:.80} is compressed, which PyTorch never does")
        if entry.file_size > (self.size if limit is None else limit):
            raise ValueError(f"its entry {name!a:.80} is larger than any checkpoint's")
        return self._archive.read(entry)

    def storage(self, storage: object) -> np.ndarray:
        """All elements (N,) of a storage."""
        if not isinstance(storage, _Storage) or not isinstance(storage.key, str) or not isinstance(storage.kind, _Kind):
            raise ValueError("it has no storage")
        kind, key = storage.kind.name, storage.key
        if kind not in DTYPES:
            raise ValueError(f"its storage is a {kind}: there are {', '.join(DTYPES)}")
        if (kind, key) not in self._storages:
            self._storages[kind, key] = np.frombuffer(self.read(f"data/{key}"), DTYPES[kind])
        values = self._storages[kind, key]
        if len(values) != storage.count:
            raise ValueError(f"its storage has {len(values)} elements, not as many as it says")
        return values


def unpickle(pickled: bytes) -> Any:
    """The value that a pickle describes. Raises ValueError for a pickle that PyTorch would not write."""
    try:
        check_opcodes(pickled)
        return _Unpickler(io.BytesIO(pickled)).load()
    except (pickle.UnpicklingError, AttributeError, EOFError, IndexError, KeyError, TypeError) as error:
        raise ValueError("its pickle is damaged") from error


def check_opcodes(pickled: bytes) -> None:
    """Follows the depth of every value on the pickle's stack; raises ValueError or LookupError for a hostile pickle.

    The depth is 0 for values that are cheap to hash and may be keys, and at least 1 for containers and large integers.
    It is 0 for objects too, which drop their content or check their keys themselves (``_Object``, ``_Dict``).
    """
    stack: list[int] = []
    marks: list[int] = []
    memo: dict[int, int] = {}
    argument: Any
    for opcode, argument, _ in pickletools.genops(pickled):
        name, before = opcode.name, opcode.stack_before
        if name not in OPCODES:
            raise ValueError(f"its pickle has the opcode {name}, which PyTorch does not write")
        if name == "MARK":
            marks.append(len(stack))
        elif name == "POP" and marks and marks[-1] == len(stack):
            marks.pop()
        elif name in PUTS:
            # The unpickler makes room for all indices up to the largest.
            if argument >= len(pickled):
                raise ValueError(f"its pickle remembers a value as number {argument}")
            memo[argument] = stack[-1]
        elif name in GETS:
            stack.append(memo[argument])
        else:
            sliced = pickletools.stackslice in before
            start = (marks.pop() - len(before) + 2) if sliced else len(stack) - len(before)
            if start < 0:
                raise IndexError(start)
            operands = stack[start:]
            del stack[start:]
            if opcode.stack_after:
                stack.append(_depth(name, argument, operands))


def _depth(name: str, argument: Any, operands: list[int]) -> int:
    """The depth of an opcode's result."""
    if name in NUMBERS:
        return int(abs(argument) >= LARGE)
    if name not in CONTAINERS | FILLS:
        return 0
    if name in ("SETITEM", "SETITEMS") and operands[0] and any(operands[1::2]):
        raise ValueError("its pickle is damaged: a dict has a key that is no name")
    depth = 1 + max(operands, default=0) if name in CONTAINERS else max(operands[0], 1 + max(operands[1:], default=0))
    if depth > MAX_NESTING:
        raise ValueError(f"its pickle nests values more than {MAX_NESTING} deep")
    return depth


class _Unpickler(pickle.Unpickler):
    """Builds containers, numbers, strings and descriptions of tensors; imports and calls nothing of the file's."""

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a class or function. Raises ValueError for one that no checkpoint needs."""
        full = f"{module}.{name}"
        if not EXPECTED.fullmatch(full):
            raise ValueError(f"it refers to {ascii(full)[1:-1]:.80}, which no checkpoint needs; nothing of it was run")
        if full.endswith("Storage"):
            return _Kind(full)
        stand_ins = {"collections.OrderedDict": _Dict, "torch._utils._rebuild_tensor_v2": _describe_tensor}
        return stand_ins.get(full, _Object)

    def persistent_load(self, pid: Any) -> _Storage:
        """The storage of a tensor."""
        if not isinstance(pid, tuple) or len(pid) != 5:
            raise TypeError(type(pid))
        _, kind, key, _, count = pid  # Besides: the word "storage", and the device that held it.
        return _Storage(kind, key, count)


@dataclass(frozen=True, eq=False)
class _Kind:
    """The class of a storage, by its name in PyTorch."""

    name: str


@dataclass(frozen=True, eq=False)
class _Storage:
    """Where a tensor's elements lie, as the file says it; checked when they are read."""

    kind: Any
    key: Any
    count: Any


@dataclass(frozen=True, eq=False)
class _Tensor:
    """A view of a storage, as the file says it; checked when it is read. Offset and strides count elements."""

    storage: Any
    offset: Any
    shape: Any
    strides: Any


def _describe_tensor(*arguments: Any) -> _Tensor:
    return _Tensor(*arguments[:4])


class _Object:
    """Stands for any other class and its objects, whose arguments, state and items are dropped."""

    __slots__ = ()

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def extend(self, items: list[Any]) -> None:
        """Drops the items that the pickle appends."""


class _Dict(dict):
    """An OrderedDict that is made empty and then filled; it drops its state."""

    def __new__(cls, *items: Any) -> Any:
        return _Object() if items else super().__new__(cls)

    def __setitem__(self, key: Any, value: Any) -> None:
        if not isinstance(key, str) and not (isinstance(key, int) and abs(key) < LARGE):
            raise TypeError(type(key))
        super().__setitem__(key, value)

    def __setstate__(self, state: Any) -> None:
        pass
