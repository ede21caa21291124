"""A synthesizer's parameter spec: the meaning of each column of a row.

A row holds the synthesizer's parameters in spec order, then the note's (pitch, start and end). ``kinds`` says how each
kind of parameter is encoded. Specs are JSON files: the bundled ones lie in ``specs/``, others are given by path.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data_pipeline.console.cli import UserError
from data_pipeline.console.os_errors import why
from data_pipeline.params.counter_rng import uniforms
from data_pipeline.params.kinds import Categorical, Continuous, Discrete, Label, NoteDuration, Parameter

T = TypeVar("T")

# Limits of a spec that is read from a file of unknown origin. No honest spec comes near them.
MAX_SPEC_BYTES = 4 << 20
MAX_WIDTH = 4096
MAX_NAME_LENGTH = 200
MAX_PERMUTATIONS = 1000
MAX_REASON_LENGTH = 300


@dataclass(frozen=True)
class ParamSpec:
    """The parameters of one synthesizer in row order. W below is ``width``, the length of a row.

    ``interchangeable`` holds groups of name prefixes, such as the prefixes of three oscillators. Swapping all
    parameters of two prefixes of a group does not change the distribution of the sound.
    """

    name: str
    synth_params: tuple[Parameter, ...]
    note_params: tuple[Parameter, ...]
    interchangeable: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.width <= MAX_WIDTH:
            raise ValueError(f"the row has {self.width} columns; 1 to {MAX_WIDTH} are possible")
        for names in ([parameter.name for parameter in self.parameters], self.column_names):
            if repeated := [name for name, times in Counter(names).items() if times > 1]:
                name = repeated[0]
                raise ValueError(f"{name} occurs more than once (a plugin's own, called like the note's, is {name}_)")
        self._check_interchangeable()

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """All parameters in row order."""
        return self.synth_params + self.note_params

    @cached_property
    def width(self) -> int:
        """W, the number of columns of a row."""
        return sum(parameter.width for parameter in self.parameters)

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Parameter name to its columns, in row order."""
        ends = list(itertools.accumulate(parameter.width for parameter in self.parameters))
        return {
            parameter.name: slice(end - parameter.width, end)
            for parameter, end in zip(self.parameters, ends, strict=True)
        }

    @cached_property
    def note_times(self) -> NoteDuration:
        """The parameter that says when the note starts and ends. Raises ValueError if there is none."""
        [found] = [parameter for parameter in self.note_params if isinstance(parameter, NoteDuration)]
        return found

    @cached_property
    def column_names(self) -> tuple[str, ...]:
        """W names, such as ``a_pan``, ``a_osc_1_octave=-1``, ``pitch``, ``note_start``."""
        return tuple(name for parameter in self.parameters for name in parameter.column_names)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 (hex) of all that changes rows or their distribution: order, kinds, ranges, labels, weights."""
        content = [{"kind": type(parameter).__name__, **_fields(parameter)} for parameter in self.parameters]
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def encode(self, values: Mapping[str, Any]) -> NDArray[np.float32]:
        """Raw values by parameter name to a row (W,) in [0, 1].

        Raises ValueError for a missing or unknown parameter, or a value that is not legal.
        """
        differing = sorted(self.slices.keys() ^ values.keys())
        if differing:
            fault = "lacks a value" if differing[0] in self.slices else "is not in the spec"
            raise ValueError(f"{differing[0]} {fault}")
        columns = [parameter.encode(values[parameter.name]) for parameter in self.parameters]
        return np.concatenate(columns).astype(np.float32)

    def decode(self, row: ArrayLike) -> dict[str, Any]:
        """Any real row (W,) to legal raw values by parameter name.

        Continuous and categorical parameters give floats (categories their raw value, see ``labels``), pitch an
        int, note times a pair (start, end) in seconds. Raises ValueError for a wrong shape or NaN.
        """
        columns = np.asarray(row, np.float64)
        if columns.shape != (self.width,):
            raise ValueError(f"a row of {self.name} has shape ({self.width},), not {columns.shape}")
        if np.isnan(columns).any():
            raise ValueError(f"column {self.column_names[int(np.argmax(np.isnan(columns)))]} is NaN")
        return {parameter.name: parameter.decode(columns[self.slices[parameter.name]]) for parameter in self.parameters}

    def sample(self, seed: int, indices: Sequence[int], attempts: Sequence[int]) -> NDArray[np.float32]:
        """Rows (N, W) drawn from the spec's distribution, one for each (index, attempt) of the N pairs.

        A row depends on (seed, index, attempt) alone. Every row is its own label: decoding and encoding it again
        changes nothing beyond float32's rounding.
        """
        drawn = uniforms(seed, indices, attempts, _draws(self.parameters))
        return _sampled(self.parameters, drawn).astype(np.float32)

    @property
    def note_draws(self) -> int:
        """Number of uniform numbers that ``sample_note`` takes."""
        return _draws(self.note_params)

    def sample_note(self, uniforms: NDArray[np.float64]) -> NDArray[np.float64]:
        """Uniform numbers (N, ``note_draws``) in [0, 1) to the note's columns of N rows, which are a row's last."""
        return _sampled(self.note_params, uniforms)

    def labels(self, values: Mapping[str, Any]) -> dict[str, Label]:
        """The synthesizer's own label of every categorical parameter's raw value."""
        return {
            parameter.name: parameter.label(values[parameter.name])
            for parameter in self.parameters
            if isinstance(parameter, Categorical)
        }

    def column_permutations(self) -> NDArray[np.int64]:
        """Every column order (P, W) that swaps interchangeable parts, the identity first.

        ``row[permutation]`` is the same patch with its parts swapped.
        """
        orders = [list(itertools.permutations(range(len(group)))) for group in self.interchangeable]
        permutations = [self._permutation(choice) for choice in itertools.product(*orders)]
        return np.stack(permutations)

    def _permutation(self, orders: tuple[tuple[int, ...], ...]) -> NDArray[np.int64]:
        permutation = np.arange(self.width)
        for group, order in zip(self.interchangeable, orders, strict=True):
            for prefix, source in zip(group, order, strict=True):
                for suffix in self._layout(prefix):
                    columns = self.slices[group[source] + suffix]
                    permutation[self.slices[prefix + suffix]] = np.arange(columns.start, columns.stop)
        return permutation

    def _check_interchangeable(self) -> None:
        """Raises ValueError where parts differ in columns. They may differ in distribution, as in Surge XT."""
        if any(len(group) < 2 for group in self.interchangeable):
            raise ValueError("an interchangeable group needs at least two prefixes")
        if math.prod(math.factorial(len(group)) for group in self.interchangeable) > MAX_PERMUTATIONS:
            raise ValueError(f"the interchangeable parts have more than {MAX_PERMUTATIONS} orders")
        prefixes = [prefix for group in self.interchangeable for prefix in group]
        if any(sum(name.startswith(prefix) for prefix in prefixes) > 1 for name in self.slices):
            raise ValueError("a parameter belongs to two interchangeable parts")
        for group in self.interchangeable:
            layouts = [self._layout(prefix) for prefix in group]
            if not layouts[0] or any(layout != layouts[0] for layout in layouts):
                raise ValueError(f"interchangeable parts {', '.join(group)} differ in their parameters or widths")

    def _layout(self, prefix: str) -> dict[str, tuple[str, int]]:
        """Kind and width of every parameter of an interchangeable part, by the name after its prefix."""
        return {
            parameter.name.removeprefix(prefix): (type(parameter).__name__, parameter.width)
            for parameter in self.parameters
            if parameter.name.startswith(prefix)
        }


def _draws(parameters: Sequence[Parameter]) -> int:
    return sum(parameter.draws for parameter in parameters)


def _sampled(parameters: Sequence[Parameter], uniforms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Uniform numbers (N, draws of all parameters) to the parameters' columns of N rows."""
    ends = itertools.accumulate(parameter.draws for parameter in parameters)
    columns = [
        parameter.sample(uniforms[:, end - parameter.draws : end])
        for parameter, end in zip(parameters, ends, strict=True)
    ]
    return np.concatenate(columns, axis=1)


_BUNDLED = resources.files("data_pipeline.params").joinpath("specs")


def bundled_specs() -> tuple[str, ...]:
    """The names of the specs that come with this package."""
    names = (entry.name for entry in _BUNDLED.iterdir())
    return tuple(sorted(name.removesuffix(".json") for name in names if name.endswith(".json")))


def bundled_spec_of_width(width: int) -> ParamSpec | None:
    """The bundled spec whose rows have this many columns; None where there is none, or more than one."""
    fitting = [spec for spec in map(load_spec, bundled_specs()) if spec.width == width]
    return fitting[0] if len(fitting) == 1 else None


def load_spec(name_or_path: str) -> ParamSpec:
    """Reads a bundled spec by name (``surge_xt``) or any spec by the path of its .json file.

    Raises UserError for an unknown name, an unreadable file, or a spec that is not well-formed.
    """
    return parse_spec(spec_text(name_or_path), name_or_path)


def parse_spec(text: str, called: str) -> ParamSpec:
    """The spec of a JSON text, which errors name as it is ``called``. Raises UserError if it is not well-formed."""
    try:
        return _parse_spec(json.loads(text, parse_constant=_refuse_constant))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        # Reasons quote the spec, which may hold anything.
        raise UserError(f"spec {called} is malformed: {textwrap.shorten(reason, MAX_REASON_LENGTH)}") from error


def spec_text(name_or_path: str) -> str:
    """The JSON text that ``load_spec`` parses, to be kept in a run's folder. Raises UserError as ``load_spec`` does."""
    if name_or_path.endswith(".json"):
        return _read_capped(Path(name_or_path))
    if name_or_path not in bundled_specs():
        raise UserError(f"no spec is called {name_or_path!r}: there are {', '.join(bundled_specs())}, or a .json path")
    return _BUNDLED.joinpath(f"{name_or_path}.json").read_text(encoding="utf-8")


def spec_json(spec: ParamSpec) -> str:
    """The JSON text of a spec, as ``load_spec`` reads it: a line for each parameter."""
    about = {"name": spec.name, "width": spec.width, "interchangeable": spec.interchangeable}
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in about.items()]
    for key, parameters in (("synth_params", spec.synth_params), ("note_params", spec.note_params)):
        entries = ",\n".join(f"  {json.dumps(_entry(parameter), allow_nan=False)}" for parameter in parameters)
        lines.append(f" {json.dumps(key)}: [\n{entries}\n ]")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _entry(parameter: Parameter) -> dict[str, Any]:
    kinds = {Categorical: "categorical", Continuous: "continuous", Discrete: "discrete", NoteDuration: "note_duration"}
    fields = _fields(parameter)
    return {"name": fields.pop("name"), "width": parameter.width, "kind": kinds[type(parameter)], **fields}


def _fields(parameter: Parameter) -> dict[str, Any]:
    """The fields of a parameter. Integers without weights have none, so that hashes of older specs stay the same."""
    return {name: value for name, value in asdict(parameter).items() if (name, value) != ("weights", ())}


def _read_capped(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_SPEC_BYTES + 1)
        if len(content) > MAX_SPEC_BYTES:
            raise UserError(f"spec {path} is larger than {MAX_SPEC_BYTES >> 20} MiB")
        return content.decode("utf-8")
    except OSError as error:
        raise UserError(f"cannot read the spec {path}: {why(error)}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"spec {path} is not UTF-8 text") from error


def _refuse_constant(constant: str) -> float:
    raise ValueError(f"{constant} is not a number a spec may hold")


def _parse_spec(data: Any) -> ParamSpec:
    spec = ParamSpec(
        name=_name(data),
        synth_params=_parse_parameters(_typed(data, "synth_params", list)),
        note_params=_parse_parameters(_typed(data, "note_params", list)),
        interchangeable=tuple(_strings(group) for group in data.get("interchangeable", [])),
    )
    if _typed(data, "width", int) != spec.width:
        raise ValueError(f"width says {data['width']}, its parameters have {spec.width} columns")
    "".join(spec.column_names).encode()  # Refuses half a surrogate pair, which cannot be printed or stored.
    return spec


def _parse_parameters(entries: list[Any]) -> tuple[Parameter, ...]:
    if len(entries) > MAX_WIDTH:
        raise ValueError(f"more than {MAX_WIDTH} parameters")
    return tuple(_parse_parameter(entry) for entry in entries)


def _parse_parameter(entry: Any) -> Parameter:
    name = _name(entry)
    try:
        parameter = _parse_kind(name, _typed(entry, "kind", str), entry)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{name}: {error}") from error
    if entry.get("width", parameter.width) != parameter.width:
        raise ValueError(f"{name}: width says {entry['width']}, its kind gives {parameter.width} columns")
    return parameter


def _parse_kind(name: str, kind: str, entry: Mapping[str, Any]) -> Parameter:
    match kind:
        case "continuous":
            constant = {key: _number(entry[key]) for key in ("constant_value", "constant_probability") if key in entry}
            return Continuous(name, min=_number(entry["min"]), max=_number(entry["max"]), **constant)
        case "categorical":
            return _parse_categorical(name, entry)
        case "discrete":
            _check_encoding(entry, "scalar")
            weights = _typed({"weights": [], **entry}, "weights", list)
            ends = {key: _typed(entry, key, int) for key in ("min", "max")}
            return Discrete(name, **ends, weights=tuple(map(_number, weights)))
        case "note_duration":
            return NoteDuration(name, max_seconds=_number(entry["max_seconds"]))
    raise ValueError(f"unknown kind {kind[:40]!r}; there are continuous, categorical, discrete, note_duration")


def _parse_categorical(name: str, entry: Mapping[str, Any]) -> Categorical:
    _check_encoding(entry, "onehot")
    labels, raw_values, weights = (_typed(entry, key, list) for key in ("values", "raw_values", "weights"))
    if max(map(len, (labels, raw_values, weights))) > MAX_WIDTH:
        raise ValueError(f"more than {MAX_WIDTH} categories")
    if not all(isinstance(label, str | int | float) and len(str(label)) <= MAX_NAME_LENGTH for label in labels):
        raise ValueError("values must be short strings, numbers or booleans")
    if any(isinstance(label, float) and not math.isfinite(label) for label in labels):
        raise ValueError("values must be finite")
    return Categorical(name, tuple(labels), tuple(map(_number, raw_values)), tuple(map(_number, weights)))


def _check_encoding(entry: Mapping[str, Any], expected: str) -> None:
    if entry.get("encoding", expected) != expected:
        raise ValueError(f"encoding must be {expected!r}")


def _typed(data: Any, key: str, kind: type[T]) -> T:
    if not isinstance(data, dict):
        raise ValueError("not a JSON object where one belongs")
    if not isinstance(data[key], kind) or isinstance(data[key], bool):
        raise ValueError(f"{key} must be of type {kind.__name__}")
    return data[key]


def _name(data: Any) -> str:
    name = _typed(data, "name", str)
    if not 0 < len(name) <= MAX_NAME_LENGTH or not name.isprintable():
        raise ValueError(f"the name {name[:40]!r} is empty, longer than {MAX_NAME_LENGTH}, or not printable")
    return name


def _number(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{str(value)[:40]!r} is not a number")
    return float(value)


def _strings(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError("interchangeable must hold lists of name prefixes")
    return tuple(values)
