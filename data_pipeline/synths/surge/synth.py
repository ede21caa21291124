"""Surge XT, hosted by pedalboard (both GPL-3; neither comes with synthjax).

Each patch is loaded whole, as the plugin's state. The render is then exactly the sound of the label loaded as a preset,
and the state read back equals it to the last digit. Writing every parameter instead would save 4 ms of 32, but one in
six golden patches with effects then sounds different although all values are right. Loading a base preset before the
writes mislabels data: the host drops a write that equals its last one, although the preset has changed the value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from data_pipeline.audio.contract import SECONDS, VELOCITY
from data_pipeline.console.cli import UserError
from data_pipeline.params.spec import ParamSpec
from data_pipeline.synths.hosting import HostedPlugin, load_preset, play_note, require_no_differences
from data_pipeline.synths.protocol import Audio, DriftError
from data_pipeline.synths.surge.patch import PatchTemplate, differences, read_preset, surge_template
from data_pipeline.synths.surge.patch_xml import parse_patch, revision

# The versions whose patches have this revision. Another revision may read our values differently.
VERSIONS = re.compile(r"1\.[34](\.|$)")
REVISION = 24


class SurgeXT:
    """Surge XT as a ``Synth``. The plugin given to it belongs to it."""

    name = "Surge XT"

    def __init__(self, plugin: HostedPlugin, spec: ParamSpec, *, allow_other_version: bool = False) -> None:
        """Raises UserError for another plugin, an untested version unless allowed, or a spec that is not Surge XT's."""
        self._plugin = plugin
        self._spec = spec
        self._template = surge_template(spec) or PatchTemplate(spec)
        self._values: Mapping[str, Any] | None = None
        self.version = _version(plugin, allow_other_version)

    def render(
        self,
        values: Mapping[str, Any],
        *,
        base: bytes | None = None,
        velocity: int = VELOCITY,
        seconds: float = SECONDS,
    ) -> Audio:
        """Renders raw values to audio (2, T); ``base`` is a plugin's state, as ``.fxp`` and ``.vstpreset`` hold it.

        Raises ValueError for an illegal value, UserError for a malformed base, and SoundingError as ``Synth`` does.
        """
        template = self._template
        if base is not None:
            template = PatchTemplate.on(base, self._spec, frozenset(values))
        load_preset(self._plugin, template.preset(values))
        # With other oscillators and effects, the plugin limits values to other ranges and leaves unused ones out.
        self._values = dict(values) if base is None else None
        return play_note(self._plugin, values, velocity=velocity, seconds=seconds)

    def verify(self) -> None:
        """Compares the patch in the plugin's state, since its parameter objects do not follow a loaded state."""
        if self._values is None:
            return
        try:
            found = differences(read_preset(self._plugin.preset_data), self._values, self._spec)
        except UserError as error:
            raise DriftError(f"Surge XT's own patch cannot be read: {error}") from error
        require_no_differences(self.name, found)

    def preset(self) -> bytes:
        """The plugin's state: the loaded patch and the state of the plugin's editor."""
        return self._plugin.preset_data


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
