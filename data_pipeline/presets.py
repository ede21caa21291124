"""Shows preset files, converts them between the formats of one synthesizer, and plays them.

    python -m data_pipeline.presets show FILE... [--json]
    python -m data_pipeline.presets convert IN OUT
    python -m data_pipeline.presets render FILE OUT.wav [--note=60] [--seconds=3] [--velocity=100] [--patch=1]

Known files: .fxp and .vstpreset of Surge XT; .syx of the DX7 (banks of 32, single voices, banks without a message
around them); .vital of Vital. ``show`` prints the values of every patch, and counts the values outside the spec that
fits best. ``convert`` takes the formats from the names' endings. The values of a patch stay as they are. Only DX7
values beyond their range, which are named, become the end of the range. ``render`` plays one note of a patch; the
synthesizer must be installed. The sound lasts a second longer than the note.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from absl import flags

from data_pipeline.audio.contract import VELOCITY
from data_pipeline.audio.sound_files import wav
from data_pipeline.console import cli
from data_pipeline.console.atomic import atomic_path
from data_pipeline.console.cli import UserError, counted
from data_pipeline.params.spec import load_spec
from data_pipeline.synths.choice import open_synth, synth_for, why_no_renderer
from data_pipeline.synths.decoding import DecodedValue, decode_values
from data_pipeline.synths.instrument import FilePatch
from data_pipeline.synths.preset_files import convert, read
from data_pipeline.synths.protocol import NOTE_TIMES, PITCH

USAGE = "usage: python -m data_pipeline.presets show FILE... [--json], or convert IN OUT, or render FILE OUT.wav"
# Seconds of the sound after the note's end.
RELEASE_SECONDS = 1.0
# Values outside the spec that the table names; --json has all of them.
NAMED = 3


def main(argv: list[str]) -> int:
    """Entry point of the command."""
    match argv[1:]:
        case ["show", _, *_]:
            return show_files([Path(name) for name in argv[2:]])
        case ["convert", source, target]:
            for remark in convert(Path(source), Path(target)):
                print(f"{source}: {remark}", file=sys.stderr)
            return 0
        case ["render", source, target]:
            render(Path(source), Path(target))
            return 0
    raise UserError(USAGE)


def show_files(paths: list[Path]) -> int:
    """Prints all patches. A file that cannot be read is one line on stderr. Returns 1 if there was any."""
    shown, failed = [], False
    for path in paths:
        try:
            patches, remarks = read(path)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            failed = True
            continue
        shown += [_as_json(path, patch) for patch in patches]
        if not flags.FLAGS.json:
            for remark in remarks:
                print(f"{path}: {remark}")
            for patch in patches:
                print_patch(path, patch)
    if flags.FLAGS.json:
        json.dump(shown, sys.stdout, indent=1, ensure_ascii=False)
        print()
    return 1 if failed else 0


def _decoded(patch: FilePatch) -> list[DecodedValue]:
    return decode_values(load_spec(patch.spec), patch.values)


def _as_json(path: Path, patch: FilePatch) -> dict[str, Any]:
    values = [
        {name: getattr(value, name) for name in ("name", "group", "label", "value", "text")}
        for value in _decoded(patch)
    ]
    about = {"name": patch.name, "about": patch.about, "spec": patch.spec}
    return {"file": str(path), **about, "values": values, "outside": patch.outside}


def print_patch(path: Path, patch: FilePatch) -> None:
    """Prints a line about the patch, and a line for each group of its values."""
    about = "".join(f", {name} {text}" for name, text in patch.about.items() if text)
    print(f"\n{path}: {patch.name or 'no name'}{about}, spec {patch.spec}")
    decoded = _decoded(patch)
    for group in dict.fromkeys(value.group for value in decoded):
        values = [value for value in decoded if value.group == group]
        print(f"  {group}: " + ", ".join(f"{value.label} {value.text}" for value in values))
    if patch.outside:
        named = "; ".join(patch.outside[:NAMED]) + ("; ..." if len(patch.outside) > NAMED else "")
        print(f"  outside the spec: {counted(len(patch.outside), 'value')}: {named}")


def render(source: Path, target: Path) -> None:
    """Writes the sound of a patch as a WAV file. Raises UserError."""
    f = flags.FLAGS
    patches, remarks = read(source)
    if f.patch > len(patches):
        raise UserError(f"--patch={f.patch}: the last patch of {source} is number {len(patches)}")
    patch = patches[f.patch - 1]
    synth = synth_for(load_spec(patch.spec))
    if reason := why_no_renderer(synth, "the environment variable SURGE_XT_PLUGIN"):
        raise UserError(reason)
    for remark in remarks:
        print(f"{source}: {remark}", file=sys.stderr)
    note = {PITCH: f.note, NOTE_TIMES: (0.0, f.seconds)}
    seconds = f.seconds + RELEASE_SECONDS
    audio = open_synth(synth).render(note, base=patch.base, velocity=f.velocity, seconds=seconds)
    with atomic_path(target) as temporary:
        temporary.write_bytes(wav(audio))


if __name__ == "__main__":
    flags.DEFINE_bool("json", False, "show: print a JSON list with every value of every patch.")
    flags.DEFINE_integer("patch", 1, "render: number of the patch in the file.", lower_bound=1)
    flags.DEFINE_integer("note", 60, "render: MIDI note number.", lower_bound=0, upper_bound=127)
    flags.DEFINE_integer("velocity", VELOCITY, "render: MIDI velocity.", lower_bound=1, upper_bound=127)
    flags.DEFINE_float("seconds", 3.0, "render: length of the note.", lower_bound=0.01, upper_bound=600.0)
    cli.run(main)
