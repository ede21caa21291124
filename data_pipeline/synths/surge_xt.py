"""Surge XT, hosted by pedalboard (both GPL-3; neither comes with synthjax).

Each patch is loaded whole, as the plugin's state: what is rendered is what anyone hears who loads the label as a
preset, and the state read back equals it to the last digit. Writing every parameter instead would save 4 ms of 32,
but one in six golden patches with effects then sounds otherwise, all values being right. Loading a base preset before
the writes mislabels data: the host drops a write that equals its last one, though the preset has changed the value
meanwhile.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.cli import UserError
from data_pipeline.counted import counted
from data_pipeline.param_spec import ParamSpec
from data_pipeline.surge_patch import PatchTemplate, differences, read_preset
from data_pipeline.surge_xml import parse_patch, revision
from data_pipeline.synths.hosting import HostedPlugin, load_preset, play_note
from data_pipeline.synths.protocol import Audio, DriftError, SynthSettings

# The versions whose patches are of this revision; another may read the values of ours in another way.
VERSIONS = re.compile(r"1\.[34](\.|$)")
REVISION = 24
DIFFERENCES_SHOWN = 3
# Where `make surge-xt` puts the plugin, in the checkout that it is run in.
INSTALLED_PLUGIN = "plugins/Surge XT.vst3"
CHECKOUT = Path(__file__).parents[2]


class SurgeXT:
    """Surge XT as a ``Synth``. The plugin given to it belongs to it."""

    name = "Surge XT"

    def __init__(self, plugin: HostedPlugin, spec: ParamSpec, *, allow_other_version: bool = False) -> None:
        """Raises UserError for another plugin, or another version unless allowed, or a spec that is not Surge XT's."""
        self._plugin = plugin
        self._spec = spec
        self._template = PatchTemplate(spec)
        self._values: Mapping[str, Any] | None = None
        self.version = _version(plugin, allow_other_version)

    def render(self, values: Mapping[str, Any]) -> Audio:
        """Raw values to audio (2, 176400). Raises ValueError for an illegal value."""
        load_preset(self._plugin, self._template.preset(values))
        self._values = dict(values)
        return play_note(self._plugin, values)

    def verify(self) -> None:
        """Reads the patch back from the plugin's state: its parameter objects know nothing of a loaded one."""
        if self._values is None:
            return
        try:
            found = differences(read_preset(self._plugin.preset_data), self._values, self._spec)
        except UserError as error:
            raise DriftError(f"Surge XT's own patch cannot be read: {error}") from error
        if found:
            listed = [f"{name} is {raw:.7g}, not {expected:.7g}" for name, expected, raw in found[:DIFFERENCES_SHOWN]]
            raise DriftError(f"Surge XT holds another patch in {counted(len(found), 'parameter')}: {'; '.join(listed)}")

    def preset(self) -> bytes:
        """The plugin's state: the patch that was loaded, and what its editor adds."""
        return self._plugin.preset_data


def plugin_path(settings: SynthSettings) -> str:
    """Where Surge XT is to be found: see ``open_synth``."""
    return settings.plugin or os.environ.get("SURGE_XT_PLUGIN") or _installed_plugin()


def _installed_plugin() -> str:
    beside = CHECKOUT / INSTALLED_PLUGIN
    return str(beside) if beside.exists() and not Path(INSTALLED_PLUGIN).exists() else INSTALLED_PLUGIN


def open_synth(settings: SynthSettings) -> SurgeXT:
    """Loads Surge XT from ``settings.plugin``, else from where ``SURGE_XT_PLUGIN`` says, else what ``make surge-xt``
    has fetched into the working folder, or into the checkout that this package is of. Raises UserError.
    """
    return SurgeXT(load_plugin(plugin_path(settings)), settings.spec, allow_other_version=settings.allow_other_version)


def load_plugin(path: str | Path) -> Any:
    """A VST3 instrument as pedalboard's ``VST3Plugin``; no display is needed.

    Raises UserError where pedalboard or the plugin is missing, or the plugin cannot be loaded or is no instrument.
    """
    if not str(path) or not Path(path).exists():
        raise UserError(
            f"there is no plugin at {str(path)!r}: name a .vst3 with --plugin, or fetch Surge XT with make surge-xt"
        )
    try:
        import pedalboard
    except ImportError as error:
        raise UserError("plugins need pedalboard (GPL-3): pip install 'synthjax[render]'") from error
    try:
        plugin = pedalboard.VST3Plugin(str(path))
    except Exception as error:  # Loading runs the plugin's own code; pedalboard reports in many types.
        raise UserError(f"the plugin {path} cannot be loaded: {error}") from error
    if not plugin.is_instrument:
        raise UserError(f"the plugin {path} is an effect; an instrument is needed")
    return plugin


def _version(plugin: Any, allow_other: bool) -> str:
    try:
        found = revision(parse_patch(read_preset(plugin.preset_data)))
    except UserError as error:
        raise UserError(f"the plugin is not Surge XT: {error}") from error
    if not (VERSIONS.match(plugin.version) and found == REVISION) and not allow_other:
        raise UserError(
            f"Surge XT {plugin.version} with patch revision {found} is not known to render these specs (1.3 and 1.4 "
            f"with revision {REVISION} do): install one that is, or give --allow_other_version"
        )
    return f"{plugin.version} (patch revision {found})"
