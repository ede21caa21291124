"""Memory, FLOPs and network traffic of a step, without running it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.compile_memory import network_bytes
from tests.helpers import TINY, run_script

# A loop of eight turns around one all-reduce, and another beside it.
PROGRAM = """
%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%body (p: (s32[], f32[10])) -> (s32[], f32[10]) {
  %inner = (f32[10]{0}, bf16[2,3]{1,0}) all-reduce(%x, %y), to_apply=%add
  ROOT %t = (s32[], f32[10]) tuple(%i, %inner)
}

ENTRY %main (p: f32[5]) -> f32[5] {
  %w = (s32[], f32[10]) while(%init), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"8"}}
  ROOT %outer = f32[5]{0} all-gather-start(%p), dimensions={0}
}
"""


def test_collectives_in_loops_count_every_turn() -> None:
    assert network_bytes(PROGRAM) == 8 * (10 * 4 + 6 * 2) + 5 * 4


def test_collectives_in_calls_count() -> None:
    program = """
%all (x: f32[7]) -> f32[7] {
  ROOT %sum = f32[7]{0} all-reduce(%x), to_apply=%add
}

ENTRY %main (x: f32[7]) -> f32[7] {
  ROOT %called = f32[7]{0} call(%x), to_apply=%all
}
"""
    assert network_bytes(program) == 7 * 4


@pytest.mark.parametrize(
    ("instruction", "words"),
    [
        ("f32[7]{0} all-reduce-start(%x)", 7),
        ("(f32[7]{0}, f32[2,3]{1,0}) all-reduce-start(%x, %y)", 13),
        ("(f32[7]{0:T(8,128)}, f32[14]{0:T(8,128)}) all-gather-start(%x)", 14),
        ("((f32[7]{0}, f32[1,1]{1,0}), (f32[14]{0}, /*index=1*/f32[2,1]{1,0})) all-gather-start(%x, %y)", 16),
        ("((f32[8]{0}), f32[4]{0}) reduce-scatter-start(%x)", 4),
        ("(f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%x)", 8),
        ("f32[14]{0} all-gather-done(%x)", 0),
        ("(f32[7]{0}, f32[7]{0}) all-to-all(%x, %y)", 14),
    ],
)
def test_what_is_started_counts_its_results_and_not_its_operands(instruction: str, words: int) -> None:
    program = f"ENTRY %main (x: f32[7]) -> f32[] {{\n  %one = {instruction}, dimensions={{0}}\n}}\n"
    assert network_bytes(program) == 4 * words


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [False, True])
def test_figures_of_a_step(tmp_path: Path, fsdp: bool) -> None:
    flags = [f"--config.{key}={value}" for key, value in (TINY | {"mesh.fsdp": fsdp}).items()]
    command = ["--config=configs/important.py", "--devices=4", f"--json={tmp_path / 'figures.json'}", *flags]
    result = run_script("compile_memory", *command)
    assert result.returncode == 0, result.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    whole = 16 * figures["parameters, all"] / 1e6  # Weights, two moments and the average, 4 bytes each.
    assert figures["mesh"] == "4 data x 1 model"
    assert figures["checkpoint in MB, all"] == pytest.approx(whole, rel=1e-3)
    state = figures["weights, optimizer, average in MB"]
    assert state < whole / 2 if fsdp else state == pytest.approx(whole, rel=1e-3)
    assert figures["network MB a step"] >= 4 * figures["parameters, all"] / 1e6
    assert figures["GFLOP a sample"] == pytest.approx(4 * figures["GFLOP a step"] / 8)


def test_a_mesh_that_does_not_fit_is_one_line() -> None:
    result = run_script("compile_memory", "--config=configs/important.py", "--devices=3")
    assert result.returncode == 2
    assert result.stderr.startswith("error: data.batch_size=128 is not a multiple of mesh.data=3")
