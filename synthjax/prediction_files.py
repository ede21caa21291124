"""A prediction as files: NAME.json, NAME.vstpreset for Surge XT, and NAME.wav where it was rendered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import soundfile

from data_pipeline.atomic import atomic_path
from data_pipeline.cli import UserError
from data_pipeline.param_spec import ParamSpec
from data_pipeline.surge_patch import PatchTemplate, patch_values, write_preset
from data_pipeline.synths.choice import SURGE_XT, display_texts, synth_for
from data_pipeline.synths.protocol import SAMPLE_RATE
from synthjax.predictor import Candidate, Prediction


class PredictionFiles:
    """Writes the results of one spec's predictions to a folder."""

    def __init__(self, folder: Path, spec: ParamSpec) -> None:
        self._folder = folder
        self._spec = spec
        self._template = _template(spec)

    def write(self, name: str, prediction: Prediction, about: Mapping[str, Any]) -> None:
        """Writes one sound's files, whole or not at all. Raises UserError where the folder cannot be written."""
        content = {**about, **self._content(prediction)}
        with atomic_path(self._path(name, ".json")) as path:
            path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if self._template is not None:
            write_preset(self._path(name, ".vstpreset"), self._template, prediction.values)
        if prediction.best.audio is not None:
            with atomic_path(self._path(name, ".wav")) as path:
                audio = prediction.best.audio.T
                soundfile.write(path, audio, SAMPLE_RATE, subtype="FLOAT", format="WAV")

    def _path(self, name: str, extension: str) -> Path:
        return self._folder / (name + extension)  # A name may have dots: with_suffix would cut it.

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


def _template(spec: ParamSpec) -> PatchTemplate | None:
    """For Surge XT's presets; None for another synthesizer's spec."""
    try:
        settings = synth_for(spec)
    except UserError:
        return None
    return PatchTemplate(settings.spec) if settings.synth == SURGE_XT else None


def _candidate(candidate: Candidate) -> dict[str, Any]:
    heard = {"score": candidate.score, **candidate.distances} if candidate.score is not None else {}
    fault = {"fault": candidate.fault} if candidate.fault else {}
    return {**heard, **fault, "row": [float(column) for column in candidate.row]}
