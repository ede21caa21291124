"""A prediction as files: NAME.json, the synthesizer's preset files, and NAME.wav if it was rendered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.audio.contract import VELOCITY
from data_pipeline.audio.sound_files import wav
from data_pipeline.console.atomic import atomic_path, make_folder
from data_pipeline.console.cli import printable
from data_pipeline.params.spec import ParamSpec
from data_pipeline.render.patch_renderer import PatchRenderer
from data_pipeline.synths.choice import instrument, instrument_of, written_endings
from data_pipeline.synths.decoding import decode_row
from data_pipeline.synths.instrument import Instrument
from data_pipeline.synths.vst3_preset import read_preset_file
from synthjax.inference.candidates import Candidate, Prediction

# The folder, beside the results of the sounds, of banks with the answers to all.
BANKS = "banks"


class PredictionFiles:
    """Writes the results of one spec's predictions to a folder.

    The synthesizer of the spec writes its preset files without being opened. A preset of any other VST3 plugin is the
    plugin's own state, which the ``renderer`` returns. A base patch of the user is the base of the preset files too.
    Raises UserError if it cannot be read.
    """

    def __init__(self, folder: Path, spec: ParamSpec, renderer: PatchRenderer | None = None) -> None:
        self._folder = folder
        self._spec = spec
        self._instrument = (instrument(renderer.synth.synth) if renderer else instrument_of(spec)) or Instrument()
        self._plugin = renderer if renderer and renderer.synth.plugin else None
        self._answers: dict[str, Mapping[str, Any]] = {}
        preset = renderer.synth.preset if renderer and not self._plugin else ""
        self._base = read_preset_file(Path(preset)) if preset else None

    def write(self, name: str, prediction: Prediction, about: Mapping[str, Any], *, in_banks: bool = True) -> None:
        """Writes one sound's files, each whole or not at all. Removes files of an earlier prediction of this name.

        ``in_banks``: the best candidate is an answer, which ``close`` writes to the banks.

        Raises UserError where the folder cannot be written.
        """
        content = {**about, **self._content(prediction)}
        text = printable(json.dumps(content, indent=2, ensure_ascii=False))  # Its escapes are those of JSON.
        self._put(name, ".json", f"{text}\n".encode())
        for ending, preset in self._presets(printable(name), prediction).items():
            self._put(name, ending, preset)
        audio = prediction.best.audio
        self._put(name, ".wav", None if audio is None else wav(audio))
        if in_banks:
            self._answers[printable(name)] = prediction.values

    def close(self) -> None:
        """Writes the best answers of several sounds to banks/1.syx and so on, if the synthesizer has banks."""
        banks = self._instrument.banks(self._spec, self._answers) if len(self._answers) > 1 else {}
        for name, content in banks.items():
            make_folder(self._folder / BANKS)
            self._put(f"{BANKS}/{name}", "", content)

    def _put(self, name: str, extension: str, content: bytes | None) -> None:
        path = self._folder / (name + extension)  # with_suffix would cut a name that has dots.
        if content is None:
            path.unlink(missing_ok=True)
            return
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)

    def _presets(self, name: str, prediction: Prediction) -> Mapping[str, bytes | None]:
        """The content of every preset file by the ending of its name; None where there is no such file."""
        found: dict[str, bytes | None] = dict.fromkeys(written_endings())
        comment = f"Estimated by synthjax from the sound {name}."
        candidates: list[Mapping[str, Any]] = [self._spec.decode(candidate.row) for candidate in prediction.candidates]
        base = self._base
        if best := prediction.best.base:
            on_base = best.with_row(prediction.best.row, self._spec)
            candidates, base = [on_base.values, *candidates[1:]], on_base.base
        found |= self._instrument.preset_files(self._spec, candidates, name, comment, base)
        if found[".vstpreset"] is None and self._plugin:
            found[".vstpreset"] = self._plugin.preset(prediction.best.row)
        return found

    def _content(self, prediction: Prediction) -> dict[str, Any]:
        spread = prediction.spread
        notes = {parameter.name: prediction.values[parameter.name] for parameter in self._spec.note_params}
        in_file = self._instrument.in_file(self._spec, prediction.values)
        parameters = {}
        for decoded in decode_row(self._spec, prediction.best.row):
            name = decoded.name
            if decoded.parameter not in notes:
                patch_value = {"patch_value": in_file[name]} if name in in_file else {}
                parameters[name] = {"value": decoded.value, "text": decoded.text, **patch_value, "spread": spread[name]}
        return {
            "spec": self._spec.name,
            "chosen": prediction.chosen,
            **notes,
            "velocity": VELOCITY,
            "note_spread": {name: spread[name] for name in notes},
            "parameters": parameters,
            "candidates": [_candidate(candidate) for candidate in prediction.candidates],
        }


def _candidate(candidate: Candidate) -> dict[str, Any]:
    origin = {"origin": candidate.origin}
    measured = {"score": candidate.score, **candidate.distances} if candidate.score is not None else {}
    fault = {"fault": candidate.fault} if candidate.fault else {}
    return {**origin, **measured, **fault, "row": [float(column) for column in candidate.row]}
