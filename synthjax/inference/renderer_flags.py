"""The flags of every command that can render patches."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from absl import flags

from data_pipeline.console.cli import UserError, counted
from data_pipeline.console.machine import usable_cores
from data_pipeline.params.spec import ParamSpec
from data_pipeline.render.patch_renderer import PatchRenderer
from data_pipeline.synths.choice import synth_for, why_no_renderer
from data_pipeline.synths.protocol import SynthSettings


def define() -> None:
    """Defines --plugin, --plugin_name, --preset, --allow_other_version and --workers."""
    flags.DEFINE_string(
        "plugin",
        "",
        "Path of a VST3 plugin; for Surge XT the default is $SURGE_XT_PLUGIN or what make surge-xt fetched.",
    )
    flags.DEFINE_string("plugin_name", "", "Name of the plugin, where the file holds several.")
    flags.DEFINE_string("preset", "", "Base patch: a .vital, or a .vstpreset of a plugin other than Surge XT.")
    flags.DEFINE_bool("allow_other_version", False, "Accept an untested version of Surge XT.")
    flags.DEFINE_integer("workers", usable_cores(), "Render processes.", lower_bound=1)


def find_synth(spec: ParamSpec) -> SynthSettings:
    """The settings of the synthesizer that renders the spec's patches; it is not opened.

    Raises UserError if it is not installed, and for a --plugin or --plugin_name that it would ignore.
    """
    f = flags.FLAGS
    settings = synth_for(spec, f.plugin, f.preset, f.plugin_name)
    for flag in ("plugin", "plugin_name"):
        if (value := getattr(f, flag)) and not getattr(settings, flag):
            raise UserError(
                f"--{flag}={value} would be ignored: {settings.synth} renders spec {spec.name}, without a plugin"
            )
    if reason := why_no_renderer(settings):
        raise UserError(reason)
    return replace(settings, allow_other_version=f.allow_other_version)


def probe_renderer(spec: ParamSpec) -> None:
    """Opens the synthesizer once, in a process of its own, and closes it. Raises UserError if that fails.

    A command calls this before hours of other work. It takes a third of a second and the time to load the plugin.
    """
    with PatchRenderer(find_synth(spec), workers=1) as renderer:
        renderer.wait_until_ready()


@contextmanager
def start_renderer(spec: ParamSpec) -> Iterator[PatchRenderer]:
    """A renderer that has opened the synthesizer of the spec's patches. Prints at the end how many workers were lost.

    Raises UserError if there is no synthesizer.
    """
    with PatchRenderer(find_synth(spec), flags.FLAGS.workers) as renderer:
        try:
            renderer.wait_until_ready()
            yield renderer
        finally:
            if lost := renderer.restarts:
                print(f"{counted(len(lost), 'render worker')} lost, the last one: {lost[-1]}", file=sys.stderr)
