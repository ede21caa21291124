"""Drafts a parameter spec of any VST3 instrument from the plugin's own parameters.

    python -m data_pipeline.introspect PLUGIN.vst3 --output=SPEC.json [--preset=BASE.vstpreset] [--plugin_name=NAME]

A parameter that shows few values becomes categorical, each category with the middle of its raw values. Any other
parameter becomes continuous on 0..1. Bypass switches, MIDI controllers, program changes and glides are left out.
Parameters that remove or rename others, as the type of an oscillator or effect may, are left out too: every category is
tried. What is left out is counted and named. A parameter called like one of the note's, such as ``pitch``, becomes
``pitch_``. The result is a draft. Before rendering, remove the parameters that should stay as in the base patch, and
narrow ranges that are silent or ugly. Needs pedalboard (GPL-3), no display.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from data_pipeline.console import cli
from data_pipeline.console.atomic import atomic_path
from data_pipeline.console.cli import UserError
from data_pipeline.params.spec import spec_json
from data_pipeline.synths.drafting import draft_spec, summary
from data_pipeline.synths.hosting import load_plugin
from data_pipeline.synths.vst3_preset import read_preset_file


def main(argv: list[str]) -> None:
    """Entry point of the command."""
    if len(argv) != 2 or not flags.FLAGS.output:
        raise UserError(
            "usage: python -m data_pipeline.introspect PLUGIN.vst3 --output=SPEC.json [--preset=BASE.vstpreset]"
        )
    output, preset = Path(flags.FLAGS.output), flags.FLAGS.preset
    if output.suffix != ".json":
        raise UserError(f"--output={output} must end in .json")
    if output.exists():
        raise UserError(f"{output} exists: a draft would replace what was edited; remove it or name another file")
    base_preset = read_preset_file(Path(preset)) if preset else None
    if not Path(argv[1]).exists():  # load_plugin's message names a flag that this command lacks.
        raise UserError(f"there is no plugin at {argv[1]!r}: give the path of a .vst3")
    draft = draft_spec(load_plugin(argv[1], flags.FLAGS.plugin_name), output.stem, base_preset)
    with atomic_path(output) as temporary:
        temporary.write_text(spec_json(draft.spec), encoding="utf-8")
    print(f"{output}: {summary(draft)}")


if __name__ == "__main__":
    flags.DEFINE_string("output", None, "The .json file to write.")
    flags.DEFINE_string("plugin_name", "", "The plugin's name, where the file holds several.")
    flags.DEFINE_string("preset", None, "The .vstpreset of the base patch; default: the plugin's own first patch.")
    cli.run(main)
