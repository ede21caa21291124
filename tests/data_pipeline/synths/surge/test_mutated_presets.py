"""Ten thousand damaged presets: a reader refuses them in one line or reads them, and does nothing else."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from data_pipeline.console.cli import UserError
from data_pipeline.params.spec import ParamSpec, load_spec
from data_pipeline.synths.surge.patch import PatchTemplate, differences, patch_values, read_preset, read_values
from tests.data_pipeline.fake_vst3 import container, surge_state

SIMPLE = load_spec("surge_simple")
NAMES = ("a_highpass", "a_amp_eg_attack", "a_osc_1_pitch", "a_noise_volume")
FEW = ParamSpec("surge_simple", tuple(p for p in SIMPLE.synth_params if p.name in NAMES), SIMPLE.note_params)


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """A few flipped bits or false characters, another digit, a cut, an insertion, a repeated stretch or a lost one."""
    mutant, kind = bytearray(data), rng.integers(7)
    start, stop = sorted(int(position) for position in rng.integers(len(data), size=2))
    if kind == 0:
        for position in rng.integers(len(data), size=2):
            mutant[position] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        for position in rng.integers(len(data), size=3):
            mutant[position] = rng.choice(np.frombuffer(b"0123456789-.ei<>/&;\"' \0", np.uint8))
    elif kind == 2:
        del mutant[start:]
    elif kind == 3:
        mutant[start:start] = rng.bytes(int(rng.integers(1, 40)))
    elif kind == 4:
        mutant[start:start] = mutant[start:stop]
    elif kind == 5:
        digits = [position for position, byte in enumerate(data) if chr(byte).isdigit()]
        mutant[digits[rng.integers(len(digits))]] = int(rng.choice(np.frombuffer(b"0123456789", np.uint8)))
    else:
        del mutant[start : min(stop, start + 40)]
    return bytes(mutant)


def false_length(preset: bytes, rng: np.random.Generator) -> bytes:
    """One of the container's offsets, counts and lengths, or the patch's length, set to another value."""
    mutant, list_offset = bytearray(preset), int.from_bytes(preset[40:48], "little")
    fields = [("<q", 40), ("<i", 52), ("<i", list_offset + 4), ("<q", list_offset + 12), ("<q", list_offset + 20)]
    layout, offset = fields[rng.integers(len(fields))]
    (true,) = struct.unpack_from(layout, preset, offset)
    falsehoods = [-1, 0, 1, true - 1, true + 1, true ^ 4, 48, 80, len(preset), (1 << 31) - 1]
    struct.pack_into(layout, mutant, offset, falsehoods[rng.integers(len(falsehoods))])
    return bytes(mutant)


@pytest.mark.parametrize("many", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_presets_raise_nothing_but_user_errors(many: int) -> None:
    values = SIMPLE.decode(np.random.default_rng(12).random(SIMPLE.width))
    texts = {value.tag: value.text(values[name]).decode() for name, value in patch_values(FEW).items()}
    elements = "".join(f'<{tag} type="2" value="{text}" />' for tag, text in texts.items())
    small = f'<patch revision="24"><parameters>{elements}</parameters></patch>'.encode()
    shipped = container({"Comp": surge_state(small) + bytes(16) + b"JUCEPrivateData<a/>", "Cont": b"", "Info": b"<b/>"})
    whole = PatchTemplate(SIMPLE).preset(values)
    rng = np.random.default_rng(0)
    cases: list[tuple[ParamSpec, int, Callable[[], bytes]]] = [
        (FEW, 2500, lambda: mutated(shipped, rng)),
        (FEW, 2500, lambda: false_length(shipped, rng)),
        (FEW, 4000, lambda: container({"Comp": surge_state(mutated(small, rng))})),
        (SIMPLE, 500, lambda: mutated(whole, rng)),
        (SIMPLE, 500, lambda: container({"Comp": surge_state(mutated(read_preset(whole), rng))})),
    ]
    outcomes: Counter[str] = Counter()
    for spec, count, mutant in cases:
        for _ in range(count * many // 10_000):
            try:
                patch = read_preset(mutant())
                outcomes["other values" if differences(patch, values, spec) else "same values"] += 1
                read_values(patch, spec)
            except UserError as error:
                outcomes[str(error).split(":")[0]] += 1
    assert sum(outcomes.values()) >= many
    # The mutations reach what must be refused, in every layer, and what must be read.
    assert (
        min(outcomes["same values"], outcomes["other values"], outcomes["the patch is malformed XML"]) > many * 3 // 100
    )
    assert len(outcomes) > (15 if many == 10_000 else 10)
