"""The patches in a folder of preset files, as a prior of rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_pipeline.console.cli import UserError, counted, printable
from data_pipeline.params.mixture import Mixture, patch_bytes
from data_pipeline.params.spec import ParamSpec
from data_pipeline.synths.choice import instrument
from data_pipeline.synths.instrument import FilePatch
from data_pipeline.synths.protocol import SynthSettings
from data_pipeline.synths.vst3_preset import read_preset_file

# Patches or files that a line names.
NAMED = 3


def mixture_of_folder(folder: Path, synth: SynthSettings) -> tuple[Mixture, list[str]]:
    """The mixture of all patches in the synthesizer's preset files in a folder and the folders below it.

    Only the patches' values count, not their order or the files' names. Returns also the lines that tell what was read
    and what was left out. Raises UserError without any patch within the spec.
    """
    own = instrument(synth.synth)
    if not own.endings:
        raise UserError(f"--prior={folder}: {own.name} has no preset files, so its rows are drawn from its spec alone")
    if not folder.is_dir():
        raise UserError(f"--prior={folder} is not a folder: name one with preset files ({', '.join(own.endings)})")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    presets = [path for path in files if path.suffix.lower() in own.endings]
    inside: list[bytes] = []
    outside: list[str] = []
    unreadable: list[str] = []
    for path in presets:
        try:
            patches, _ = own.read(read_preset_file(path))
        except UserError as error:
            unreadable.append(f"{path.name}: {error}")
            continue
        for patch in patches:
            try:
                inside.append(_encoded(synth.spec, patch))
            except ValueError as error:
                outside.append(f"{patch.name or 'no name'} in {path.name}: {error}")
    left_out = [
        *_named(len(outside), f"patches outside spec {synth.spec.name}", outside),
        *_named(len(unreadable), "files that cannot be read", unreadable),
        *_named(len(files) - len(presets), f"files of other kinds than {', '.join(own.endings)}", []),
    ]
    if not inside:
        raise UserError("; ".join([f"--prior={folder} has no patch of spec {synth.spec.name}", *left_out]))
    mixture = Mixture.of(synth.spec, own.panel, inside)
    summary = f"different patches: {mixture.count}, in {counted(len(presets) - len(unreadable), 'file')}"
    return mixture, [printable(f"prior {folder}: {line}") for line in (summary, *left_out)]


def _encoded(spec: ParamSpec, patch: FilePatch) -> bytes:
    """The patch's columns. Raises ValueError where the patch has values outside the spec."""
    if patch.outside:
        raise ValueError(patch.outside[0])
    if patch.values.keys() != {parameter.name for parameter in spec.synth_params}:
        raise ValueError(f"a patch of spec {patch.spec}")
    return patch_bytes(spec, patch.values)


def _named(count: int, kind: str, examples: list[str]) -> Iterator[str]:
    """A line with the number of things left out, and the first few of them; none if there are none."""
    if count:
        named = f" ({'; '.join(examples[:NAMED])}{'; ...' if count > NAMED else ''})" if examples else ""
        yield f"left out {kind}: {count}{named}"
