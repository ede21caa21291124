"""A prediction as files: NAME.json, NAME.vstpreset to load in a host, and NAME.wav where it was rendered."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import soundfile

from data_pipeline.atomic import atomic_path
from data_pipeline.cli import UserError
from data_pipeline.param_spec import ParamSpec
from data_pipeline.patch_renderer import PatchRenderer
from data_pipeline.surge_patch import PatchTemplate, patch_values
from data_pipeline.synths.choice import display_texts, synth_for
from data_pipeline.synths.protocol import SAMPLE_RATE, SURGE_XT, VST3, Audio, SynthSettings
from synthjax.predictor import Candidate, Prediction


class PredictionFiles:
    """Writes the results of one spec's predictions to a folder.

    Presets of Surge XT need no plugin. Those of any other VST3 instrument are the plugin's own state, which the
    ``renderer`` is asked for.
    """

    def __init__(self, folder: Path, spec: ParamSpec, renderer: PatchRenderer | None = None) -> None:
        self._folder = folder
        self._spec = spec
        synth = renderer.synth if renderer else _known_synth(spec)
        self._template = PatchTemplate(synth.spec) if synth and synth.synth == SURGE_XT else None
        self._plugin = renderer if synth and synth.synth == VST3 else None

    def write(self, name: str, prediction: Prediction, about: Mapping[str, Any]) -> None:
        """Writes one sound's files, each whole or not at all, and removes what an earlier prediction had besides.

        Raises UserError where the folder cannot be written.
        """
        content = {**about, **self._content(prediction)}
        self._put(name, ".json", (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
        self._put(name, ".vstpreset", self._preset(prediction))
        self._put(name, ".wav", _wav(prediction.best.audio))

    def _put(self, name: str, extension: str, content: bytes | None) -> None:
        path = self._folder / (name + extension)  # A name may have dots: with_suffix would cut it.
        if content is None:
            path.unlink(missing_ok=True)
            return
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)

    def _preset(self, prediction: Prediction) -> bytes | None:
        if self._template is not None:
            return self._template.preset(prediction.values)
        return self._plugin.preset(prediction.best.row) if self._plugin is not None else None

    def _content(self, prediction: Prediction) -> dict[str, Any]:
        values = dict(prediction.values)
        notes = {parameter.name: values.pop(parameter.name) for parameter in self._spec.note_params}
        texts, spread = display_texts(self._spec, values), prediction.spread
        in_patch = {} if self._template is None else patch_values(self._spec)
        parameters = {}
        for name, value in values.items():
            parameters[name] = {"value": value, "text": texts[name]}
            if name in in_patch:
                parameters[name]["patch_value"] = in_patch[name].to_patch(value)
            parameters[name]["spread"] = spread[name]
        return {
            "spec": self._spec.name,
            "chosen": prediction.chosen,
            **notes,
            "note_spread": {name: spread[name] for name in notes},
            "parameters": parameters,
            "candidates": [_candidate(candidate) for candidate in prediction.candidates],
        }


def _known_synth(spec: ParamSpec) -> SynthSettings | None:
    """The synthesizer of a spec that has one here; None for another plugin's."""
    try:
        return synth_for(spec)
    except UserError:
        return None


def _wav(audio: Audio | None) -> bytes | None:
    if audio is None:
        return None
    file = io.BytesIO()
    soundfile.write(file, audio.T, SAMPLE_RATE, subtype="FLOAT", format="WAV")
    return file.getvalue()


def _candidate(candidate: Candidate) -> dict[str, Any]:
    heard = {"score": candidate.score, **candidate.distances} if candidate.score is not None else {}
    fault = {"fault": candidate.fault} if candidate.fault else {}
    return {**heard, **fault, "row": [float(column) for column in candidate.row]}
