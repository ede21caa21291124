"""Reads a render config (``configs/render_*.py``): checks its values and makes the renderer's settings."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import ml_collections

from data_pipeline.console.cli import UserError
from data_pipeline.params.spec import load_spec
from data_pipeline.render.row_renderer import RenderSettings
from data_pipeline.render.worker_pool import Supervision
from data_pipeline.synths.choice import check_settings
from data_pipeline.synths.known_patches import mixture_of_folder
from data_pipeline.synths.protocol import SynthSettings

KEYS = ("spec", "synth", "batch_rows", "min_loudness", "max_peak", "verify_every", "render_seconds", "max_worker_gib")


def render_settings(
    config: ml_collections.ConfigDict,
    *,
    seed: int,
    plugin: str = "",
    preset: str = "",
    plugin_name: str = "",
    allow_other_version: bool = False,
    verify_each: bool = False,
    store_audio: bool = True,
) -> RenderSettings:
    """The settings that decide the data set's content.

    Raises UserError for another kind of config, impossible values, an unknown spec or synthesizer, and a plugin or
    preset that the synthesizer would ignore.
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
    synth = SynthSettings(config.synth, load_spec(config.spec), plugin, preset, allow_other_version, plugin_name)
    check_settings(synth)
    verify_every = 1 if verify_each else config.verify_every
    return RenderSettings(synth, seed, config.min_loudness, config.max_peak, verify_every, store_audio=store_audio)


def with_prior(settings: RenderSettings, folder: str) -> RenderSettings:
    """The settings with patches drawn as mixtures of a folder's presets; as they are if no folder is named.

    Prints what was read to stderr. Raises UserError for a folder without patches of the spec.
    """
    if not folder:
        return settings
    mixture, lines = mixture_of_folder(Path(folder), settings.synth)
    print(*lines, sep="\n", file=sys.stderr)
    return replace(settings, mixture=mixture)


def supervision(config: ml_collections.ConfigDict) -> Supervision:
    """When a worker is given up."""
    return Supervision(config.render_seconds, int(config.max_worker_gib * 2**30))
