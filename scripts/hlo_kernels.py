"""The kernels that a program compiled for a GPU runs, by XLA's text of it: bytes and FLOPs of each, and how often.

Every fusion, library call and copy is one kernel, those in a loop as often as it turns. A kernel reads its operands and
writes its results once, of an array that it only takes a slice of or writes one into, the slice. FLOPs are those of
matrix products, convolutions and attention, in cuBLAS and cuDNN; what fusions compute takes less time than their bytes.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hlo_sources import sources
from hlo_text import arrays, called, computations, size, times

SYNTHJAX = Path(__file__).resolve().parents[1] / "synthjax"
# They name or place what is there: nothing runs. The done half of what is asynchronous counts with its start.
FREE = re.compile(
    r"parameter|constant|bitcast|tuple|get-tuple-element|after-all|add-dependency|opt-barrier|(replica|partition)-id|.*-done"
)
# What they read of their first operand is as large as their result.
SLICES = ("slice", "dynamic-slice", "gather")
# Of a result's path: functions that are inlined, loops over layers, and what is computed again.
WRAPPERS = re.compile(r"(jit\(\w+\)|while|body|closed_call|checkpoint|rematted_computation)/")


@dataclass(frozen=True)
class Kernel:
    """``read`` and ``written`` are bytes of one run.

    Attributes:
      kind: what runs: the library's name for it, or XLA's for a fusion.
      shape: arrays that it makes; of a product, those that it takes.
      where: line of the code, and JAX's name for what is computed.
    """

    kind: str
    shape: str
    where: str
    runs: int
    read: int
    written: int
    flop: int


@dataclass(frozen=True)
class _Instruction:
    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool


# Instructions by name. Those of a fusion are one kernel.
_Computation = dict[str, _Instruction]


def list_kernels(program: str) -> list[Kernel]:
    """In the order in which they are first run."""
    lines, entry = computations(program)
    parsed = {name: _parse(text) for name, text in lines.items()}
    lines_of_code = sources(program, SYNTHJAX)

    def walk(name: str, runs: int) -> Iterator[Kernel]:
        for one in parsed[name].values():
            if one.opcode in ("while", "call", "conditional", "async-start"):
                for inner in _entered(one):
                    yield from walk(inner, runs * times(one.attributes))
            elif not FREE.fullmatch(one.opcode):
                body = parsed[called(one.attributes)[0]] if one.opcode == "fusion" else _alone(one, parsed[name])
                yield _kernel(one, body, runs, lines_of_code)

    return list(walk(entry, 1))


def _parse(lines: Sequence[str]) -> _Computation:
    found: _Computation = {}
    for line in lines:
        match = re.match(r"\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$", line)
        if match:
            root, name, types, opcode, rest = match.groups()
            end = _closing(rest)
            operands = tuple(re.findall(r"%([\w.\-]+)", rest[:end]))
            found[name] = _Instruction(name, types, opcode, operands, rest[end:], bool(root))
    return found


def _closing(text: str) -> int:
    """Where the parenthesis ends that ``text`` begins inside of."""
    depth = 1
    for i, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0:
            return i
    return len(text)


def _entered(one: _Instruction) -> list[str]:
    """What is no kernel itself but runs those of other computations; to_apply is that of a call."""
    return called(one.attributes) or re.findall(r"to_apply=%([\w.\-]+)", one.attributes)


def _alone(one: _Instruction, around: _Computation) -> _Computation:
    """An instruction as if it were a fusion of nothing else."""
    operands = {
        name: replace(around[name], opcode="parameter", operands=(), attributes="", is_root=False)
        for name in one.operands
    }
    return operands | {one.name: replace(one, is_root=True)}


def _kernel(one: _Instruction, body: _Computation, runs: int, lines_of_code: dict[int, str]) -> Kernel:
    users = _users(body)
    (root,) = (inner for inner in body.values() if inner.is_root)
    return Kernel(
        kind=_kind(one),
        shape=_shape(one, body),
        where=_where(one, lines_of_code),
        runs=runs,
        read=sum(_read(inner.name, body, users) for inner in body.values() if inner.opcode == "parameter"),
        written=_written(root, body),
        flop=sum(_flop(inner, body) for inner in body.values()),
    )


def _kind(one: _Instruction) -> str:
    """Such as ``cublas lt matmul``, ``cudnn fmhaSoftmax``, ``loop_convert_fusion``, ``triton_softmax``, ``copy``."""
    if one.opcode == "custom-call":
        return " ".join(re.findall(r"[^_$]+", _target(one)))
    if one.opcode != "fusion":
        return one.opcode
    stem = re.sub(r"[.\d]+$", "", one.name)
    return f"triton {stem}" if stem == "fusion" and '"kind":"__triton"' in one.attributes else stem


def _shape(one: _Instruction, body: _Computation) -> str:
    if _is_product(one):
        return " x ".join(_text(body[name].type)[0] for name in one.operands[:2])
    made, *more = _text(_results(one))
    return f"{made} +{len(more)}" if more else made


def _text(types: str) -> list[str]:
    return [f"{dtype}[{','.join(map(str, shape))}]" for dtype, shape in arrays(types)]


def _where(one: _Instruction, lines_of_code: dict[int, str]) -> str:
    frame = re.search(r"stack_frame_id=(\d+)", one.attributes)
    path = re.search(r'op_name="([^"]*)"', one.attributes)
    line = lines_of_code.get(int(frame.group(1)), "") if frame else ""
    return f"{line} {WRAPPERS.sub('', path.group(1)) if path else ''}".strip()


def _users(body: _Computation) -> dict[str, list[tuple[_Instruction, int]]]:
    """What takes a value, and as which operand."""
    users = defaultdict(list)
    for one in body.values():
        for place, name in enumerate(one.operands):
            users[name].append((one, place))
    return users


def _read(name: str, body: _Computation, users: dict[str, list[tuple[_Instruction, int]]]) -> int:
    """Bytes of a value that its users take, all of them at most once."""
    whole = taken = size(body[name].type)
    if name in users:
        taken = sum(_taken(user, place, whole, body, users) for user, place in users[name])
    return min(taken, whole)


def _taken(user: _Instruction, place: int, whole: int, body: _Computation, users: dict) -> int:
    if user.opcode == "bitcast":
        return _read(user.name, body, users)
    if place == 0 and user.opcode in SLICES:
        return size(user.type)
    if place == 0 and _is_in_place(user, body):
        return 0
    return whole


def _written(one: _Instruction, body: _Computation) -> int:
    if one.opcode == "tuple":
        return sum(_written(body[name], body) for name in one.operands)
    if one.opcode == "bitcast":
        return _written(body[one.operands[0]], body)
    if _is_in_place(one, body):
        return size(body[one.operands[1]].type)
    return size(_results(one))


def _is_in_place(one: _Instruction, body: _Computation) -> bool:
    """Whether it writes a slice into an array that is there already."""
    if one.opcode != "dynamic-update-slice":
        return False
    into = body[one.operands[0]]
    while into.opcode == "bitcast":
        into = body[into.operands[0]]
    return into.opcode == "parameter"


def _results(one: _Instruction) -> str:
    """The type without the workspace, which cuBLAS and cuDNN return last of a tuple."""
    return re.sub(r", (?:/\*.*?\*/)?[su]8\[\d+\]\S*\)$", ")", one.type) if one.opcode == "custom-call" else one.type


def _flop(one: _Instruction, body: _Computation) -> int:
    target = _target(one)
    if target.startswith("__cudnn$fmha"):
        return _flop_of_attention(one, body)
    if target.startswith("__cudnn$conv"):
        return _flop_of_convolution(one, body)
    return _flop_of_product(one, body) if _is_product(one) else 0


def _target(one: _Instruction) -> str:
    target = re.search(r'custom_call_target="([^"]*)"', one.attributes)
    return target.group(1) if target else ""


def _is_product(one: _Instruction) -> bool:
    return one.opcode == "dot" or _target(one).startswith("__cublas$")


def _flop_of_product(one: _Instruction, body: _Computation) -> int:
    """Of each of the numbers made, a product and a sum for each that is contracted."""
    contracted = _integers(r'lhs_contracting_dim(?:ension)?s"?[:=][\[{]([^\]}]*)', one)
    left, made = _dimensions(body[one.operands[0]].type), _dimensions(one.type)
    return 2 * math.prod(made) * math.prod(left[i] for i in contracted)


def _flop_of_attention(one: _Instruction, body: _Computation) -> int:
    """Forwards two products of N x M x K for each head of each row; backwards five, the scores again among them."""
    scores = _integers(r'"intermediate_tensor_shape":\s*\{.*?"dimensions":\s*\[([^\]]*)', one)
    products = 5 if "Backward" in _target(one) else 2
    return products * 2 * math.prod(scores) * _dimensions(body[one.operands[0]].type)[-1]


def _flop_of_convolution(one: _Instruction, body: _Computation) -> int:
    """The same forwards and for either gradient: every number of the forward's result meets one filter."""
    left, right = (_dimensions(body[name].type) for name in one.operands[:2])
    made = _dimensions(one.type)
    if "BackwardInput" in _target(one):
        outputs, filters = left, right
    elif "BackwardFilter" in _target(one):
        outputs, filters = right, made
    else:
        outputs, filters = made, right
    labels = re.search(r"dim_labels=\w+_(\w+)->", one.attributes)
    assert labels, one
    return 2 * math.prod(outputs) * math.prod(filters) // filters[labels.group(1).index("o")]


def _integers(pattern: str, one: _Instruction) -> list[int]:
    found = re.search(pattern, one.attributes)
    assert found, one
    return [int(text) for text in re.findall(r"\d+", found.group(1))]


def _dimensions(types: str) -> tuple[int, ...]:
    """Shape of the first array of a type."""
    return arrays(types)[0][1]
