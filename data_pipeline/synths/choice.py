"""Which synthesizer renders a spec, whether its settings fit, and whether it is installed.

Parameter names decide which synthesizer a spec belongs to, whatever the spec's file is called: a copy of
``surge_simple`` with a narrowed range or a changed weight is still a spec of Surge XT.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from data_pipeline.console.cli import UserError
from data_pipeline.params.spec import ParamSpec, load_spec
from data_pipeline.synths.hosting import NEEDS_PEDALBOARD
from data_pipeline.synths.protocol import SUBTRACTIVE, SURGE_XT, VST3, SynthSettings, module_of
from data_pipeline.synths.surge.patch import PatchTemplate, surge_template
from data_pipeline.synths.surge.synth import plugin_path


def synth_for(spec: ParamSpec, plugin: str = "", preset: str = "", plugin_name: str = "") -> SynthSettings:
    """Returns the synthesizer that renders a spec's rows; the other arguments are as in ``SynthSettings``.

    A spec with the parameters of a bundled one belongs to that one's synthesizer. Any other spec belongs to
    ``plugin``. With a base patch in ``preset`` every spec does: the bundled specs have base patches of their own.
    Raises UserError for a spec of no known synthesizer.
    """
    if preset and not plugin:
        raise UserError(f"--preset={preset} is the base patch of a plugin: name the plugin with --plugin")
    if not preset:
        if spec.slices.keys() == load_spec(SUBTRACTIVE).slices.keys():
            return SynthSettings(SUBTRACTIVE, spec)
        if template := surge_template(spec):
            return SynthSettings(SURGE_XT, template.spec, plugin, plugin_name=plugin_name)
    if plugin:
        return SynthSettings(VST3, spec, plugin, preset, plugin_name=plugin_name)
    raise UserError(
        f"no synthesizer here knows spec {spec.name}: it is neither {SUBTRACTIVE}'s nor Surge XT's; name its VST3 "
        "plugin with --plugin, and its base patch, if it has one, with --preset"
    )


def check_settings(settings: SynthSettings) -> None:
    """Checks that the synthesizer uses every setting and lacks none, without opening it. Raises UserError."""
    module_of(settings.synth)
    if settings.preset and settings.synth in (SUBTRACTIVE, SURGE_XT):
        raise UserError(
            f"--preset={settings.preset} would be ignored: synth {settings.synth} has its own base patches; leave the "
            "preset out, or render the plugin from it with --config.synth=vst3"
        )
    if (ignored := settings.plugin or settings.plugin_name) and settings.synth == SUBTRACTIVE:
        flag = "plugin" if settings.plugin else "plugin_name"
        raise UserError(f"--{flag}={ignored} would be ignored: synth {SUBTRACTIVE} is built in")
    if settings.synth == VST3 and not settings.plugin:
        raise UserError(f"synth {VST3} needs its plugin: --plugin=PATH.vst3")
    if settings.synth == SURGE_XT:
        try:
            PatchTemplate(settings.spec)
        except UserError as error:
            raise UserError(f"{error}; a spec of another plugin is rendered with --config.synth=vst3") from error


def why_no_renderer(settings: SynthSettings, named_by: str = "--plugin") -> str | None:
    """Returns one line that names the missing plugin, preset or package; None where nothing is missing.

    The synthesizer is not opened, so a damaged plugin is not noticed. ``named_by`` is the flag or variable that names
    the plugin for the command at hand.
    """
    if settings.synth not in (SURGE_XT, VST3):
        return None
    plugin = plugin_path(settings) if settings.synth == SURGE_XT else settings.plugin
    if not plugin or not Path(plugin).exists():
        fetched = ", or fetch Surge XT with make surge-xt" if settings.synth == SURGE_XT else ""
        return f"there is no plugin at {plugin!r}: name a .vst3 with {named_by}{fetched}"
    if importlib.util.find_spec("pedalboard") is None:
        return NEEDS_PEDALBOARD
    if settings.preset and not Path(settings.preset).is_file():
        return f"there is no preset at {settings.preset!r}"
    return None
