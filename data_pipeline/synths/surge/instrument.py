"""Surge XT as an ``Instrument``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import data_pipeline
from data_pipeline.console.cli import UserError
from data_pipeline.params.groups import Panel
from data_pipeline.params.spec import ParamSpec
from data_pipeline.synths.hosting import load_plugin, why_not_hosted
from data_pipeline.synths.instrument import FilePatch, Instrument, Values
from data_pipeline.synths.protocol import SynthSettings
from data_pipeline.synths.surge import preset_files
from data_pipeline.synths.surge.display import surge_texts
from data_pipeline.synths.surge.patch import SPECS, PatchTemplate, patch_values, surge_template
from data_pipeline.synths.surge.synth import SurgeXT

# Where `make surge-xt` puts the plugin, in the checkout where it runs.
INSTALLED_PLUGIN = "plugins/Surge XT.vst3"
CHECKOUT = Path(data_pipeline.__file__).parents[1]


class SurgeInstrument(Instrument):
    """Surge XT: parameters are called as in ``a_filter_1_cutoff`` (scene A, first filter).

    The groups are the panels of its window. The mixer has levels, mutes and routes of all sources.
    """

    name = "surge_xt"
    specs = SPECS
    takes = frozenset(("plugin", "plugin_name"))
    extra = "synthjax[render]"
    endings = (".fxp", ".vstpreset")
    writes = (".fxp", ".vstpreset")
    panel = Panel(
        groups=(
            (r"a_(?=osc_\d_(?:volume|mute|route)$|noise_|ring_modulation_)", "Mixer"),
            (r"a_osc_(\d+)_", "Oscillator {}"),
            (r"a_(?=osc_drift$|fm_)", "Oscillator FM and drift"),
            (r"a_amp_eg_", "Amplifier envelope"),
            (r"a_filter_eg_", "Filter envelope"),
            (r"a_filter_(\d+)_", "Filter {}"),
            (r"a_(?=filter_|feedback$|highpass$)", "Filter routing"),
            (r"a_waveshaper_", "Waveshaper"),
            (r"a_lfo_(\d+)_", "LFO {}"),
            (r"a_(?=pan$|width$|vca_gain$)", "Output"),
            (r"fx_([a-z]\d+)_", "Effect {}"),
        ),
        exchangeable=("Oscillator {}", "Filter {}", "LFO {}", "Effect {}"),
    )

    def open(self, settings: SynthSettings) -> SurgeXT:
        """Loads Surge XT from ``plugin_path``. Raises UserError."""
        plugin = load_plugin(plugin_path(settings), settings.plugin_name)
        return SurgeXT(plugin, settings.spec, allow_other_version=settings.allow_other_version)

    def fits(self, spec: ParamSpec) -> bool:
        """Whether the spec has a base patch here, and parameters of Surge XT."""
        return surge_template(spec) is not None

    def check(self, settings: SynthSettings) -> None:
        """Raises UserError for a spec that is not Surge XT's."""
        if not self.fits(settings.spec):
            try:
                PatchTemplate(settings.spec)
            except UserError as error:
                raise UserError(f"{error}; a spec of another plugin is rendered with --config.synth=vst3") from error

    def missing(self, settings: SynthSettings, named_by: str) -> str | None:
        """Looks for the plugin and for pedalboard."""
        return why_not_hosted(plugin_path(settings), f"{named_by}, or fetch Surge XT with make surge-xt")

    def texts(self, spec: ParamSpec, values: Values) -> dict[str, str]:
        """The texts of Surge XT's window."""
        return surge_texts(spec, values)

    def in_file(self, spec: ParamSpec, values: Values) -> dict[str, float]:
        """The values in the patch."""
        return {name: in_patch.to_patch(values[name]) for name, in_patch in patch_values(spec).items()}

    def read(self, content: bytes) -> tuple[list[FilePatch], list[str]]:
        """The patch of an ``.fxp`` or ``.vstpreset``."""
        return [preset_files.read(content)], []

    def convert(self, content: bytes, ending: str) -> bytes:
        """The same state in the container of another ending."""
        return preset_files.convert(content, ending)

    def preset_files(
        self, spec: ParamSpec, candidates: Sequence[Values], name: str, comment: str, base: bytes | None = None
    ) -> dict[str, bytes]:
        """The first candidate as ``.fxp``, which Surge's browser reads, and as ``.vstpreset``, for any host."""
        if base is not None:
            template = PatchTemplate.on(base, spec, frozenset(candidates[0]))
            return preset_files.preset_files(template.state(candidates[0]), name, comment)
        found = surge_template(spec)
        return preset_files.preset_files(found.state(candidates[0]), name, comment) if found else {}


def plugin_path(settings: SynthSettings) -> str:
    """The path of the plugin: that of the settings, else of SURGE_XT_PLUGIN, else what ``make surge-xt`` fetched.

    ``make surge-xt`` puts it into the working folder, which may differ from the checkout of this package.
    """
    here, beside = Path(INSTALLED_PLUGIN), CHECKOUT / INSTALLED_PLUGIN
    installed = beside if beside.exists() and not here.exists() else here
    return settings.plugin or os.environ.get("SURGE_XT_PLUGIN") or str(installed)


INSTRUMENT = SurgeInstrument()
