"""Writes what is known of Vital, from the package vita.

    python -m scripts.vital_spec spec > data_pipeline/params/specs/vital.json
    python -m scripts.vital_spec controls > data_pipeline/synths/vital/controls.json

The spec has the part of Vital's panel that most patches use. Ranges are Vital's own, so that a ``.vital`` file's value
is legal. There are three exceptions. The wave of an oscillator is one of five. Its destination is a filter, both, the
effects or the output. An envelope's delay is at most 0.5 s and its attack at most 2 s: with Vital's 4 s and 32 s, a
third of all random patches would be silent for the 4 s of a sound. Envelopes 2 and 3, and LFO 1, act through six
modulations.

Random patches are drawn as follows. A continuous value is its usual one with the probability that the tables below
give, else any value of its range. Most patches have one or two oscillators, at most one filter in two, and an effect in
four or five patches. Most modulations are 0. What a source or effect does not use while it is off is drawn all the
same.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import vita

from data_pipeline.console import cli
from data_pipeline.console.cli import UserError
from data_pipeline.params.kinds import Categorical, Continuous, Discrete, NoteDuration, Parameter
from data_pipeline.params.spec import ParamSpec, load_spec, spec_json
from data_pipeline.synths.vital.patch import WAVES

USAGE = "usage: python -m scripts.vital_spec spec, or controls"
DECIMALS = 5
# The probability of a continuous parameter's usual value, which is that of Vital's initial patch; or the weights of
# categories; or those of integers, of which the others share EQUAL_SHARE (without any weights, all are alike).
Choice = float | Sequence[float] | dict[int, float]

DESTINATIONS = [0.5, 0.2, 0.1, 0.2, 0.0]
SYNC = [0.8, 0.1, 0.05, 0.05]
OSCILLATOR: dict[str, Choice] = {
    "level": 0.5,
    "pan": 0.7,
    "transpose": {0: 0.5, -12: 0.12, 12: 0.12, -24: 0.03, 24: 0.03, 7: 0.04, -5: 0.02, 19: 0.02},
    "tune": 0.6,
    "phase": 0.6,
    "wave_frame": [0.3, 0.2, 0.15, 0.2, 0.15],
    "unison_voices": {1: 0.6, 2: 0.08, 3: 0.08, 4: 0.06, 5: 0.05, 7: 0.04},
    "unison_detune": 0.3,
    "distortion_type": [0.5, *[0.06] * 6, 0.04, 0.04, 0.01, 0.02, 0.02, 0.01],
    "distortion_amount": 0.0,
    "spectral_morph_type": [0.5, *[0.05] * 7, 0.02, *[0.05] * 3],
    "spectral_morph_amount": 0.0,
    "destination": DESTINATIONS,
}
FILTER: dict[str, Choice] = {
    "model": [0.25, 0.15, 0.15, 0.1, 0.1, 0.08, 0.1, 0.07],
    "style": [0.3, 0.3, 0.11, 0.12, 0.12, 0.01, 0.01, 0.01, 0.01, 0.01],
    "blend": 0.5,
    "cutoff": 0.0,
    "resonance": 0.2,
    "drive": 0.5,
    "mix": 0.8,
    "keytrack": 0.5,
    "formant_x": 0.3,
    "formant_y": 0.3,
    "filter_input": [0.9, 0.1],
}
ENVELOPE: dict[str, Choice] = {
    "delay": 0.9,
    "attack": 0.6,
    "hold": 0.7,
    "decay": 0.1,
    "sustain": 0.4,
    "release": 0.2,
    "attack_power": 0.7,
    "decay_power": 0.7,
    "release_power": 0.7,
}
LFO: dict[str, Choice] = {
    "sync": [*SYNC, 0.0],
    "tempo": {},
    "frequency": 0.0,
    "phase": 0.5,
    "delay_time": 0.8,
    "fade_time": 0.8,
    "sync_type": [0.7, 0.1, 0.1, 0.1, 0.0, 0.0],
}
# The probability that a modulation's amount is 0.
MODULATIONS = {
    "env_2_to_filter_1_cutoff": 0.5,
    "env_2_to_filter_2_cutoff": 0.7,
    "env_3_to_voice_transpose": 0.8,
    "lfo_1_to_filter_1_cutoff": 0.7,
    "lfo_1_to_voice_amplitude": 0.8,
    "lfo_1_to_voice_tune": 0.8,
}
# Whether each part is on, and the parameters of the parts that occur once.
ON = {"osc_1": 0.99, "osc_2": 0.5, "osc_3": 0.3, "sample": 0.15, "filter_1": 0.5, "filter_2": 0.3}
SAMPLE: dict[str, Choice] = {"level": 0.3, "destination": DESTINATIONS}
EFFECTS: dict[str, tuple[float, dict[str, Choice]]] = {
    "chorus": (0.25, {"dry_wet": 0.3, "mod_depth": 0.3}),
    "compressor": (0.2, {"mix": 0.3, "band_gain": 0.3}),
    "delay": (
        0.25,
        {
            **{"dry_wet": 0.3, "feedback": 0.3, "style": [0.4, 0.2, 0.2, 0.2], "sync": SYNC},
            **{"tempo": {}, "frequency": 0.0},
        },
    ),
    "distortion": (0.2, {"type": [1.0] * 6, "drive": 0.2, "mix": 0.5}),
    "eq": (0.2, {f"{band}_{name}": 0.2 for band in ("low", "band", "high") for name in ("gain", "cutoff")}),
    "flanger": (0.15, {"dry_wet": 0.3, "feedback": 0.3, "center": 0.3}),
    "phaser": (0.15, {"dry_wet": 0.3, "feedback": 0.3, "center": 0.3}),
    "reverb": (0.25, {"dry_wet": 0.3, "decay_time": 0.2, "size": 0.3}),
}
# The share of an integer's weight that all integers have alike.
EQUAL_SHARE = 0.12
# The largest values that are smaller than Vital's: fourth roots of seconds.
LARGEST = {f"env_{k}_{name}": seconds**0.25 for k in (1, 2, 3) for name, seconds in (("delay", 0.5), ("attack", 2.0))}

SYNTH = vita.Synth()


def main(argv: list[str]) -> None:
    """Entry point of the command."""
    match argv[1:]:
        case ["spec"]:
            note = (Discrete("pitch", 24, 96), NoteDuration("note_start_and_end", 4.0))
            oscillators = (("osc_1_", "osc_2_", "osc_3_"),)
            sys.stdout.write(spec_json(ParamSpec("vital", tuple(_parameters()), note, oscillators)))
        case ["controls"]:
            json.dump({"defaults": _defaults(), "displays": _displays()}, sys.stdout, indent=0)
            sys.stdout.write("\n")
        case _:
            raise UserError(USAGE)


def _parameters() -> list[Parameter]:
    found = [_part(f"osc_{k}", OSCILLATOR) for k in (1, 2, 3)] + [_part("sample", SAMPLE)]
    found += [_part(f"filter_{k}", FILTER) for k in (1, 2)]
    found += [_part(f"env_{k}", ENVELOPE) for k in (1, 2, 3)] + [_part("lfo_1", LFO)]
    found.append([Continuous(name, -1.0, 1.0, 0.0, at_0) for name, at_0 in MODULATIONS.items()])
    found += [_part(effect, choices, on) for effect, (on, choices) in EFFECTS.items()]
    return [parameter for part in found for parameter in part]


def _part(part: str, choices: dict[str, Choice], on: float | None = None) -> list[Parameter]:
    on = ON.get(part) if on is None else on
    first: dict[str, Choice] = {} if on is None else {"on": [round(1.0 - on, DECIMALS), on]}
    return [_parameter(f"{part}_{name}", choice) for name, choice in {**first, **choices}.items()]


def _parameter(name: str, choice: Choice) -> Parameter:
    control = SYNTH.get_control_details(name)
    if isinstance(choice, dict):
        return Discrete(name, int(control.min), int(control.max), _integer_weights(control, choice))
    if isinstance(choice, float):
        usual = control.default_value if choice else 0.0
        return Continuous(name, control.min, LARGEST.get(name, control.max), usual, choice)
    return Categorical(name, _labels(name, control, len(choice)), tuple(map(float, range(len(choice)))), tuple(choice))


def _integer_weights(control: vita.ControlInfo, choice: dict[int, float]) -> tuple[float, ...]:
    if not choice:
        return ()
    integers = range(int(control.min), int(control.max) + 1)
    return tuple(round(choice.get(integer, 0.0) + EQUAL_SHARE / len(integers), DECIMALS) for integer in integers)


def _labels(name: str, control: vita.ControlInfo, count: int) -> tuple[str, ...]:
    """Vital's own labels. Of two alike, which are those of the other two oscillators, the second has a 2."""
    own = list(WAVES) if name.endswith("wave_frame") else [str(label) for label in control.options][:count]
    own += [f"style {number}" for number in range(len(own) + 1, count + 1)]
    return tuple(f"{label} 2" if label in own[:at] else label for at, label in enumerate(own))


def _defaults() -> dict[str, float]:
    settings = json.loads(SYNTH.to_json())["settings"]
    return {name: value for name, value in sorted(settings.items()) if isinstance(value, float)}


def _displays() -> dict[str, list]:
    """How Vital shows each continuous parameter: [scale, factor, offset, unit]."""
    found = {}
    for parameter in load_spec("vital").synth_params:
        if isinstance(parameter, Continuous) and parameter.name not in MODULATIONS:
            control = SYNTH.get_control_details(parameter.name)
            scale = str(control.scale).rpartition(".")[2].lower()
            if parameter.name.endswith("_frequency") and control.display_units == " secs":
                scale = "period"
            unit = control.display_units if control.display_units in ("", "%") else f" {control.display_units.strip()}"
            found[parameter.name] = [scale, control.display_multiply, control.post_offset, unit]
    return found


if __name__ == "__main__":
    cli.run(main)
