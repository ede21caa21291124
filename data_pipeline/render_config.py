"""What a render config (``configs/render_*.py``) says, checked and in the types of the renderer."""

from __future__ import annotations

import math

import ml_collections

from data_pipeline.cli import UserError
from data_pipeline.param_spec import load_spec
from data_pipeline.row_renderer import RenderSettings
from data_pipeline.surge_patch import PatchTemplate
from data_pipeline.synths.protocol import SUBTRACTIVE, SURGE_XT, VST3, SynthSettings, module_of
from data_pipeline.worker_pool import Supervision

KEYS = ("spec", "synth", "batch_rows", "min_loudness", "max_peak", "verify_every", "render_seconds", "max_worker_gib")


def render_settings(
    config: ml_collections.ConfigDict,
    *,
    seed: int,
    plugin: str = "",
    preset: str = "",
    allow_other_version: bool = False,
    verify_each: bool = False,
) -> RenderSettings:
    """What decides the data set's content.

    Raises UserError for another kind of config, values that make no sense, an unknown spec or synthesizer, and what
    the synthesizer has no use for.
    """
    if missing := [name for name in KEYS if name not in config]:
        raise UserError(f"this is no config of a rendering, it lacks {', '.join(missing)}: use configs/render_*.py")
    for name in ("batch_rows", "verify_every"):
        if config[name] < 1:
            raise UserError(f"{name}={config[name]} must be at least 1")
    for name in ("render_seconds", "max_worker_gib", "max_peak"):
        if not config[name] > 0:
            raise UserError(f"{name}={config[name]} must be positive")
    if math.isnan(config.min_loudness):
        raise UserError("min_loudness=nan is no loudness; -inf refuses only silence")
    synth = SynthSettings(config.synth, load_spec(config.spec), plugin, preset, allow_other_version)
    _require_fitting(synth)
    return RenderSettings(synth, seed, config.min_loudness, config.max_peak, 1 if verify_each else config.verify_every)


def _require_fitting(settings: SynthSettings) -> None:
    module_of(settings.synth)  # Told before a worker is started that cannot open it.
    if settings.preset and settings.synth in (SUBTRACTIVE, SURGE_XT):
        raise UserError(
            f"--preset={settings.preset} would be ignored: synth {settings.synth} has its own base patches; leave the "
            "preset out, or render the plugin from it with --config.synth=vst3"
        )
    if settings.plugin and settings.synth == SUBTRACTIVE:
        raise UserError(f"--plugin={settings.plugin} would be ignored: synth {SUBTRACTIVE} is built in")
    if settings.synth == VST3 and not settings.plugin:
        raise UserError(f"synth {VST3} needs its plugin: --plugin=PATH.vst3")
    if settings.synth == SURGE_XT:
        try:
            PatchTemplate(settings.spec)
        except UserError as error:
            raise UserError(f"{error}; a spec of another plugin is rendered with --config.synth=vst3") from error


def supervision(config: ml_collections.ConfigDict) -> Supervision:
    """When a worker is given up."""
    return Supervision(config.render_seconds, int(config.max_worker_gib * 2**30))
