"""Writes checkpoints as PyTorch does, and others that PyTorch would never write, without PyTorch."""

from __future__ import annotations

import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

STORAGES = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
}


@dataclass(frozen=True)
class Name:
    """A global, which a pickle refers to by module and name."""

    module: str
    name: str


@dataclass
class Call:
    """An object that the reader of a pickle makes by calling a global; ``state`` is its state."""

    function: Name
    arguments: tuple
    state: Any = None


@dataclass
class Persistent:
    """An object outside the pickle, which the reader finds by its identity."""

    identity: tuple


@dataclass
class Raw:
    """Opcodes as they are."""

    opcodes: bytes


def tensor(entry: str, array: np.ndarray, **changes: Any) -> Call:
    """The description of a whole contiguous array; changes replace parts of it."""
    strides = tuple(step // array.itemsize for step in array.strides)
    parts = {"kind": STORAGES[array.dtype.name], "key": entry, "count": array.size}
    parts |= {"offset": 0, "shape": array.shape, "strides": strides} | changes
    storage = Persistent(("storage", Name("torch", parts["kind"]), parts["key"], "cpu", parts["count"]))
    hooks = Call(Name("collections", "OrderedDict"), ())
    arguments = (storage, parts["offset"], parts["shape"], parts["strides"], False, hooks)
    return Call(Name("torch._utils", "_rebuild_tensor_v2"), arguments)


def opcodes(value: Any) -> bytes:
    """The opcodes of protocol 2 that leave ``value`` on the stack."""
    match value:
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            return b"\x8a" + bytes([9]) + value.to_bytes(9, "little", signed=True)
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            text = value.encode("utf-8", "surrogatepass")
            return b"X" + struct.pack("<I", len(text)) + text
        case tuple():
            return b"(" + b"".join(map(opcodes, value)) + b"t"
        case list():
            return b"](" + b"".join(map(opcodes, value)) + b"e"
        case dict():
            return b"}(" + b"".join(opcodes(key) + opcodes(item) for key, item in value.items()) + b"u"
        case Name():
            return f"c{value.module}\n{value.name}\n".encode()
        case Call():
            call = opcodes(value.function) + opcodes(value.arguments) + b"R"
            return call if value.state is None else call + opcodes(value.state) + b"b"
        case Persistent():
            return opcodes(value.identity) + b"Q"
        case Raw():
            return value.opcodes
    raise TypeError(type(value))


def write_archive(path: Path, pickled: bytes, storages: dict[str, bytes], **entries: bytes) -> Path:
    """A zip archive as torch.save makes it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, content in ({"byteorder": b"little", "version": b"3\n"} | entries).items():
            archive.writestr(f"archive/{name}", content)
        for key, content in storages.items():
            archive.writestr(f"archive/data/{key}", content)
    return path


def write_checkpoint(path: Path, weights: dict[str, np.ndarray], **beside: Any) -> Path:
    """A Lightning checkpoint of ``weights`` with ``beside`` next to its ``state_dict``."""
    described = {name: tensor(str(index), array) for index, (name, array) in enumerate(weights.items())}
    storages = {str(index): array.tobytes() for index, array in enumerate(weights.values())}
    saved = {"state_dict": described, "global_step": 7} | beside
    return write_archive(path, b"\x80\x02" + opcodes(saved) + b".", storages)
