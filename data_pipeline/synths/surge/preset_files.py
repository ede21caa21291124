"""Files that hold a whole Surge XT patch: ``.fxp``, which Surge's own browser reads, and ``.vstpreset``, for hosts.

Both hold the same bytes, the plugin's state. An ``.fxp`` is the container of a VST 2 program: 60 bytes, big-endian,
then the state.

    offset   size
         0      4   "CcnK"
         4      4   0 (byte size, not used)
         8      4   "FPCh": a program with a chunk
        12      4   1, the format's version
        16      4   "cjs3", Surge's id
        20      8   1, 1: plugin version, number of parameters
        28     28   name, padded with zeros
        56      4   size of the state
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from xml.etree.ElementTree import Element

from data_pipeline.console.cli import UserError
from data_pipeline.params.kinds import Categorical, Continuous
from data_pipeline.params.spec import ParamSpec, load_spec
from data_pipeline.synths.instrument import FilePatch
from data_pipeline.synths.surge.patch import CLASS_ID, SPECS, base_patch, patch_values, read_preset, with_xml
from data_pipeline.synths.surge.patch_xml import finite_number, parameters, parse_patch, revision, serialise
from data_pipeline.synths.vst3_preset import build_container, read_state

_HEADER = struct.Struct(">4si4si4sii28si")
_NAME_BYTES = 28


def read_surge_file(content: bytes) -> bytes:
    """Reads the plugin's state from the bytes of an ``.fxp`` or ``.vstpreset``. Raises UserError if it is malformed."""
    return _read_fxp(content) if content.startswith(b"CcnK") else read_state(content)


def _read_fxp(content: bytes) -> bytes:
    if len(content) < _HEADER.size:
        raise UserError(f"the .fxp is cut off: it has {len(content)} bytes")
    _, _, kind, _, plugin, _, _, _, size = _HEADER.unpack_from(content)
    if kind != b"FPCh":
        raise UserError("the .fxp holds no patch of its own, only a list of parameters or a bank")
    if plugin != b"cjs3":
        raise UserError(f"the .fxp is another plugin's ({plugin.decode('ascii', 'replace')}), not Surge's (cjs3)")
    state = content[_HEADER.size :]
    if not 0 < size <= len(state):
        raise UserError(f"the .fxp is damaged: its state has {len(state)} bytes of {size}")
    return state[:size]


def fxp(state: bytes, name: str) -> bytes:
    """The ``.fxp`` of a plugin's state. The header has room for 28 bytes of the name; the patch has the whole one."""
    short = name.encode("utf-8")[:_NAME_BYTES].decode("utf-8", "ignore").encode("utf-8")
    return _HEADER.pack(b"CcnK", 0, b"FPCh", 1, b"cjs3", 1, 1, short, len(state)) + state


def preset_files(state: bytes, name: str, comment: str) -> dict[str, bytes]:
    """The files of a patch by the ending of their names. Surge's browser shows name and comment. Raises UserError."""
    root = _patch(state)
    for meta in root.findall("meta"):
        meta.attrib.update(name=name, comment=comment)
    named = with_xml(state, serialise(root).encode())
    return {".fxp": fxp(named, name), ".vstpreset": vstpreset(named)}


def vstpreset(state: bytes) -> bytes:
    """The ``.vstpreset`` of a plugin's state."""
    return build_container(CLASS_ID, state)


def convert(content: bytes, ending: str) -> bytes:
    """The same state in the container of another ending."""
    state = read_surge_file(content)
    return fxp(state, _meta(_patch(state)).get("name", "")) if ending == ".fxp" else vstpreset(state)


def read(content: bytes) -> FilePatch:
    """The patch of a file in the spec that leaves the fewest of its values outside. Raises UserError."""
    state = read_surge_file(content)
    root = _patch(state)
    meta = _meta(root)
    about = {name: meta.get(name, "") for name in ("category", "author", "comment", "license")}
    about["revision"] = str(revision(root))
    found = [FilePatch(meta.get("name", ""), about, name, *_in_spec(root, load_spec(name)), state) for name in SPECS]
    return min(found, key=lambda patch: len(patch.outside))


def _patch(state: bytes) -> Element:
    return parse_patch(read_preset(vstpreset(state)))


def _meta(root: Element) -> Mapping[str, str]:
    found = root.find("meta")
    return found.attrib if found is not None else {}


def _in_spec(root: Element, spec: ParamSpec) -> tuple[dict[str, float], list[str]]:
    """Raw values by name, and a line for each value that the spec does not have."""
    found, base = parameters(root), parameters(base_patch(spec.name))
    values, outside = {}, []
    for parameter in spec.synth_params:
        in_patch = patch_values(spec)[parameter.name]
        text = found[in_patch.tag].get("value", "") if in_patch.tag in found else "missing"
        try:
            raw = in_patch.to_raw(finite_number(text, in_patch.tag))
            assert isinstance(parameter, Categorical | Continuous)  # Surge XT's specs have no other kinds.
            parameter.encode(raw)
        except (UserError, ValueError):
            outside.append(f"{in_patch.tag} is {text}, which {parameter.name} cannot be")
            continue
        values[parameter.name] = raw
    tags = {in_patch.tag for in_patch in patch_values(spec).values()}
    outside += [
        f"{tag} is {element.get('value')}, in the base patch {base[tag].get('value') if tag in base else 'missing'}"
        for tag, element in found.items()
        if tag not in tags and not (tag in base and _same_number(element, base[tag]))
    ]
    return values, outside


def _same_number(one: Element, other: Element) -> bool:
    try:
        return float(one.get("value", "")) == float(other.get("value", ""))
    except ValueError:  # A patch of unknown origin may hold any text.
        return one.get("value") == other.get("value")
