"""Writes the spec of the DX7, with weights from banks: python -m scripts.dexed_spec BANK.syx... > SPEC.json

A value's weight is its share among the banks' voices, mixed with a tenth of equal weights, so that every value can
occur. Only these counts enter the spec, no patch. The spec that comes with this package was made from the banks
``known_00`` to ``known_19``.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from data_pipeline.console import cli
from data_pipeline.console.cli import UserError
from data_pipeline.params.kinds import Categorical, Discrete, NoteDuration, Parameter
from data_pipeline.params.spec import ParamSpec, spec_json
from data_pipeline.synths.dexed.syx import read_syx
from data_pipeline.synths.dexed.voice import COMMON, OPERATOR, Voice

EQUAL_SHARE = 0.1
DECIMALS = 5
CURVES = ("-LIN", "-EXP", "+EXP", "+LIN")
LABELS = {
    "left_curve": CURVES,
    "right_curve": CURVES,
    "frequency_mode": ("ratio", "fixed"),
    "oscillator_key_sync": ("off", "on"),
    "lfo_key_sync": ("off", "on"),
    "lfo_wave": ("triangle", "saw down", "saw up", "square", "sine", "sample & hold"),
    "algorithm": tuple(range(1, 33)),
}


def main(argv: list[str]) -> None:
    """Entry point of the command."""
    if len(argv) < 2:
        raise UserError("give banks: python -m scripts.dexed_spec BANK.syx... > SPEC.json")
    voices = [voice.limited() for path in argv[1:] for voice in read_syx(Path(path).read_bytes()).voices]
    operators = [
        _parameter(f"op_{op}_{name}", name, most, voices) for op in range(1, 7) for name, most in OPERATOR.items()
    ]
    common = [_parameter(name, name, most, voices) for name, most in COMMON.items()]
    note = (Discrete("pitch", 24, 96), NoteDuration("note_start_and_end", 4.0))
    sys.stdout.write(spec_json(ParamSpec("dexed", (*operators, *common), note)))


def _parameter(full: str, name: str, largest: int, voices: list[Voice]) -> Parameter:
    counts = Counter(voice.values[full] for voice in voices)
    equal = EQUAL_SHARE / (largest + 1)
    shares = ((1.0 - EQUAL_SHARE) * counts[value] / len(voices) + equal for value in range(largest + 1))
    weights = tuple(round(share, DECIMALS) for share in shares)
    if name in LABELS:
        return Categorical(full, LABELS[name], tuple(map(float, range(largest + 1))), weights)
    return Discrete(full, 0, largest, weights)


if __name__ == "__main__":
    cli.run(main)
