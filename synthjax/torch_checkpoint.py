"""Reads checkpoints of PyTorch Lightning without PyTorch, and without running anything that is in them.

Such a file is a zip archive of NAME/data.pkl, a pickle of protocol 2, and NAME/data/KEY, the bytes of each storage,
none of them compressed (torch.save since PyTorch 1.6). A pickle is a program for a stack machine that may call any
function. The machine here calls none: it knows the opcodes that make containers, numbers and strings, takes note of
the storage, shape and strides of every tensor, and of all other objects that Lightning keeps beside the weights (whole
modules, optimizers, configs) it knows no more than that they are there. Nothing is imported or looked up by name, and
names that no checkpoint has a reason to hold are refused.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import jax.numpy as jnp
import numpy as np

from data_pipeline.cli import UserError

# Forty times that of the largest model here with its optimizer: an opcode takes a byte, what it makes may take 100.
MAX_PICKLE_BYTES = 4 << 20
MAX_DIMENSIONS = 8
MAX_STEP = 2**63

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
# What Lightning's checkpoints name: containers, tensors, and the classes of hyperparameters, callbacks and modules,
# the reference's own (its package is called src) among them. Each is kept as a name only.
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
WEIGHT_NAME = re.compile(r"[\w.]+", re.ASCII)
# What zipfile raises for archives that are damaged, or use features that PyTorch's never do.
ZIP_ERRORS = (zipfile.BadZipFile, EOFError, NotImplementedError, OverflowError, RuntimeError, struct.error)


@dataclass(frozen=True)
class TorchCheckpoint:
    """Weights by their names in the file's ``state_dict``, and how many steps they were trained."""

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
        raise UserError(f"{path} is no checkpoint of PyTorch Lightning that can be read: {error}") from error


def _read(archive: _Archive) -> TorchCheckpoint:
    saved = _Machine().run(archive.read("data.pkl", MAX_PICKLE_BYTES))
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
        folders = [name.removesuffix("/data.pkl") for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(folders) != 1:
            raise ValueError("the archive has no data.pkl" if not folders else "the archive has several data.pkl")
        self._folder = folders[0]
        self._storages: dict[tuple[str, str], np.ndarray] = {}
        # Not told before PyTorch 2.1.
        if f"{self._folder}/byteorder" in archive.namelist() and self.read("byteorder", len("little")) != b"little":
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
        if not isinstance(storage, _Storage) or not isinstance(storage.key, str) or not isinstance(storage.kind, _Name):
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


@dataclass(frozen=True, eq=False)
class _Name:
    """A class or function that the pickle refers to."""

    name: str


@dataclass(frozen=True, eq=False)
class _Storage:
    """Where a tensor's elements lie; all as the file says it, checked when they are read."""

    kind: Any
    key: Any
    count: Any


@dataclass(frozen=True, eq=False)
class _Tensor:
    """A view of a storage; all as the file says it, checked when it is read. Offset and strides in elements."""

    storage: Any
    offset: Any
    shape: Any
    strides: Any


class _Object:
    """Anything else: its class does not exist here, its state is left out."""


def _is_key(value: object) -> bool:
    """Whether a dict takes it, quickly: no nest without end to be hashed, nor large numbers made to have one hash."""
    return isinstance(value, str | None | _Name | _Object) or (isinstance(value, int) and abs(value) < 2**31)


class _Machine:
    """The stack machine of a pickle, without calls."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, pickled: bytes) -> Any:
        """What the pickle describes. Raises ValueError or EOFError for one that PyTorch would not write."""
        stream = io.BytesIO(pickled)
        try:
            while (code := stream.read(1)) != STOP:
                if not code:
                    raise EOFError("its pickle ends too soon")
                if code not in OPCODES:
                    raise ValueError(f"its pickle has the opcode {code!r}, which PyTorch does not write")
                execute, read_argument = OPCODES[code]
                execute(self, read_argument(stream))
            return self._stack.pop()
        except (IndexError, KeyError, TypeError) as error:  # Of the stacks, the memo and the tuples of tensors.
            raise ValueError("its pickle is damaged") from error

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def mark(self) -> None:
        self._marks.append(len(self._stack))

    def take(self, count: int) -> list[Any]:
        """Pops the last ``count`` values."""
        start = len(self._stack) - count
        if start < 0:
            raise IndexError(count)
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def take_marked(self) -> list[Any]:
        """Pops all values since the last mark."""
        return self.take(max(0, len(self._stack) - self._marks.pop()))

    def drop(self) -> None:
        self._stack.pop()

    def remember(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def recall(self, index: int) -> None:
        self.push(self._memo[index])

    def extend(self, items: list[Any]) -> None:
        """Appends to the list on top."""
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, _Object):
            raise TypeError(type(target))

    def update(self, items: list[Any]) -> None:
        """Puts keys and values in turn into the dict on top."""
        target, keys, values = self._stack[-1], items[::2], items[1::2]
        if isinstance(target, dict):
            if len(keys) != len(values) or not all(map(_is_key, keys)):
                raise TypeError(len(items))
            target.update(zip(keys, values, strict=True))
        elif not isinstance(target, _Object):
            raise TypeError(type(target))

    def name(self, name: str) -> None:
        if not EXPECTED.fullmatch(name):
            raise ValueError(f"it refers to {ascii(name)[1:-1]:.80}, which no checkpoint needs; nothing of it was run")
        self.push(_Name(name))

    def persistent(self) -> None:
        identity = self._stack.pop()
        if not isinstance(identity, tuple) or len(identity) != 5:
            raise TypeError(type(identity))
        _, kind, key, _, count = identity  # Also the word "storage", and the device it was on.
        self.push(_Storage(kind, key, count))

    def reduce(self) -> None:
        """Where other machines call a function: describes what it would return."""
        function, arguments = self.take(2)
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise TypeError(type(function))
        if function.name == "collections.OrderedDict" and not arguments:
            self.push({})
        elif function.name == "torch._utils._rebuild_tensor_v2":
            self.push(_Tensor(*arguments[:4]))
        else:
            self.push(_Object())


def _reader(opcode: pickletools.OpcodeInfo) -> Callable[[BinaryIO], Any]:
    """What reads an opcode's argument from the pickle."""
    if opcode.name == "GLOBAL":  # Lines of plain text, where pickletools would resolve escapes.
        return lambda stream: ".".join(stream.readline().rstrip(b"\n").decode("ascii") for _ in range(2))
    return opcode.arg.reader if opcode.arg else lambda stream: None


def _pushes(make: Callable[[Any], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, argument: machine.push(make(argument))


def _literals(names: Iterable[str]) -> dict[str, Callable[[_Machine, Any], None]]:
    return dict.fromkeys(names, _pushes(lambda argument: argument))


# What the opcodes of protocol 2 do, by their names in pickletools.
OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **_literals(["BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE"]),
    "PROTO": lambda machine, _: None,
    "NONE": _pushes(lambda _: None),
    "NEWTRUE": _pushes(lambda _: True),
    "NEWFALSE": _pushes(lambda _: False),
    "EMPTY_TUPLE": _pushes(lambda _: ()),
    "EMPTY_LIST": _pushes(lambda _: []),
    "EMPTY_DICT": _pushes(lambda _: {}),
    "MARK": lambda machine, _: machine.mark(),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.take_marked())),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.take(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.take(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.take(3))),
    "APPEND": lambda machine, _: machine.extend(machine.take(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.take_marked()),
    "SETITEM": lambda machine, _: machine.update(machine.take(2)),
    "SETITEMS": lambda machine, _: machine.update(machine.take_marked()),
    "BINPUT": lambda machine, index: machine.remember(index),
    "LONG_BINPUT": lambda machine, index: machine.remember(index),
    "BINGET": lambda machine, index: machine.recall(index),
    "LONG_BINGET": lambda machine, index: machine.recall(index),
    "POP": lambda machine, _: machine.drop(),
    "GLOBAL": lambda machine, name: machine.name(name),
    "BINPERSID": lambda machine, _: machine.persistent(),
    "REDUCE": lambda machine, _: machine.reduce(),
    "NEWOBJ": lambda machine, _: machine.reduce(),
    # The state of an object, which none has here.
    "BUILD": lambda machine, _: machine.drop(),
}
STOP = b"."
# By their codes, with what reads their argument.
OPCODES: dict[bytes, tuple[Callable[[_Machine, Any], None], Callable[[BinaryIO], Any]]] = {
    opcode.code.encode("latin-1"): (OPERATIONS[opcode.name], _reader(opcode))
    for opcode in pickletools.opcodes
    if opcode.name in OPERATIONS
}
