"""What a program would do on a GPU, told by its text; of XLA for GPUs only where its plugin is installed."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import pytest
from bench_report import Report
from flax import nnx
from gpu_kernels import LAUNCH_SECONDS, PRODUCT_FLOPS, Gpu, rows, totals, trainer_for_gpu
from hlo_kernels import Kernel, list_kernels
from hlo_sources import sources
from hlo_text import arrays, called, size

from configs.important import get_config
from tests.helpers import REPOSITORY, TINY, assert_usage_error, run_script

PLUGIN = "jax_cuda13_plugin"
IMPORTANT = "--config=configs/important.py"

# A loop of three turns, each of which takes a layer (4, 8) of three, keeps one, and copies what it carries.
LOOP = """
HloModule jit_step, is_scheduled=true

%take (all: bf16[3,4,8], i: s32[]) -> bf16[4,8] {
  %all = bf16[3,4,8]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %as_it_is = bf16[3,32]{1,0} bitcast(%all)
  %one = bf16[1,32]{1,0} dynamic-slice(%as_it_is, %i, %zero), dynamic_slice_sizes={1,32}
  ROOT %layer = bf16[4,8]{1,0} bitcast(%one)
}

%keep (all: bf16[3,4,8], i: s32[], new: bf16[4,8]) -> (bf16[3,4,8], f32[4]) {
  %all = bf16[3,4,8]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %new = bf16[4,8]{1,0} parameter(2)
  %rows = bf16[3,32]{1,0} bitcast(%all)
  %row = bf16[1,32]{1,0} bitcast(%new)
  %updated = bf16[3,32]{1,0} dynamic-update-slice(%rows, %row, %i, %zero)
  %kept = bf16[3,4,8]{2,1,0} bitcast(%updated)
  %sums = f32[4]{0} reduce(%new, %zero), dimensions={1}, to_apply=%add
  ROOT %both = (bf16[3,4,8]{2,1,0}, f32[4]{0}) tuple(%kept, %sums)
}

%pad (i: s32[], new: bf16[1,4,8]) -> bf16[3,4,8] {
  %i = s32[] parameter(0)
  %new = bf16[1,4,8]{2,1,0} parameter(1)
  %zero = s32[] constant(0)
  %none = bf16[] constant(0)
  %zeros = bf16[3,4,8]{2,1,0} broadcast(%none), dimensions={}
  ROOT %padded = bf16[3,4,8]{2,1,0} dynamic-update-slice(%zeros, %new, %i, %zero, %zero)
}

%body (carry: (s32[], bf16[3,4,8])) -> (s32[], bf16[3,4,8]) {
  %carry = (s32[], bf16[3,4,8]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %all = bf16[3,4,8]{2,1,0} get-tuple-element(%carry), index=1
  %take_fusion.4 = bf16[4,8]{1,0} fusion(%all, %i), calls=%take, metadata={op_name="jit(step)/while/body/take"}
  %keep_fusion = (bf16[3,4,8]{2,1,0}, f32[4]{0}) fusion(%all, %i, %take_fusion.4), kind=kInput, calls=%keep
  %out = bf16[3,4,8]{2,1,0} get-tuple-element(%keep_fusion), index=0
  %copy.1 = bf16[3,4,8]{2,1,0} copy(%out)
  ROOT %next = (s32[], bf16[3,4,8]{2,1,0}) tuple(%i, %copy.1)
}

ENTRY %main (x: bf16[3,4,8], i: s32[], new: bf16[1,4,8]) -> bf16[3,4,8] {
  %x = bf16[3,4,8]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %new = bf16[1,4,8]{2,1,0} parameter(2)
  %start = (s32[], bf16[3,4,8]{2,1,0}) tuple(%i, %x)
  %loop = (s32[], bf16[3,4,8]{2,1,0}) while(%start), body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %pad_fusion.1 = bf16[3,4,8]{2,1,0} fusion(%i, %new), kind=kLoop, calls=%pad
}
"""


def test_kernels_of_a_loop_run_at_every_turn_and_move_slices() -> None:
    take, keep, copy, pad = list_kernels(LOOP)
    layer, everything, index, sums = 4 * 8 * 2, 3 * 4 * 8 * 2, 4, 4 * 4
    assert take == Kernel("take_fusion", "bf16[4,8]", "take", 3, layer + index, layer, 0)
    assert keep == Kernel("keep_fusion", "bf16[3,4,8] +1", "", 3, layer + index, layer + sums, 0)
    assert copy == Kernel("copy", "bf16[3,4,8]", "", 3, everything, everything, 0)
    # Into zeros that it makes itself all is written.
    assert pad == Kernel("pad_fusion", "bf16[3,4,8]", "", 1, layer + index, everything, 0)


def program_of(instruction: str, **operands: str) -> str:
    """A program of one instruction."""
    parameters = "\n".join(f"  %{name} = {kind} parameter({i})" for i, (name, kind) in enumerate(operands.items()))
    return f"ENTRY %main (a: f32[]) -> f32[] {{\n{parameters}\n  ROOT %it.7 = {instruction}\n}}\n"


def test_unfused_instructions_move_slices_too() -> None:
    (kernel,) = list_kernels(program_of("f32[1,5]{1,0} dynamic-slice(%x, %i, %i)", x="f32[9,5]{1,0}", i="s32[]"))
    assert (kernel.read, kernel.written) == (5 * 4 + 4, 5 * 4)
    update = "f32[9,5]{1,0} dynamic-update-slice(%x, %new, %i, %i)"
    (kernel,) = list_kernels(program_of(update, x="f32[9,5]{1,0}", new="f32[1,5]{1,0}", i="s32[]"))
    assert (kernel.read, kernel.written) == (5 * 4 + 4, 5 * 4)


def test_no_more_is_read_than_there_is() -> None:
    program = """
%twice (x: f32[8]) -> f32[12] {
  %x = f32[8]{0} parameter(0)
  %head = f32[6]{0} slice(%x), slice={[0:6]}
  %tail = f32[6]{0} slice(%x), slice={[2:8]}
  ROOT %joined = f32[12]{0} concatenate(%head, %tail), dimensions={0}
}

ENTRY %main (x: f32[8]) -> f32[12] {
  %x = f32[8]{0} parameter(0)
  ROOT %fusion = f32[12]{0} fusion(%x), kind=kLoop, calls=%twice
}
"""
    (kernel,) = list_kernels(program)
    assert (kernel.read, kernel.written) == (8 * 4, 12 * 4)


GEMM = (
    '(f32[6,4,5]{2,1,0}, s8[4194304]{0}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul", backend_config='
    '{"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],'
    '"rhs_contracting_dimensions":["2"],"lhs_batch_dimensions":["0"],"rhs_batch_dimensions":["0"]}}}'
)


def test_products_count_their_flops_and_not_their_workspace() -> None:
    (kernel,) = list_kernels(program_of(GEMM, a="bf16[6,8,4]{2,1,0}", b="bf16[6,5,8]{2,1,0}"))
    bytes_of_both, flop = 2 * 6 * 8 * (4 + 5), 2 * 6 * 4 * 8 * 5
    shape = "bf16[6,8,4] x bf16[6,5,8]"
    assert kernel == Kernel("cublas lt matmul", shape, "", 1, bytes_of_both, 4 * 6 * 4 * 5, flop)


def attention(target: str, results: str) -> str:
    scores = '{"element_type": "BF16", "dimensions": ["2", "3", "6", "5"], "layout": {"minor_to_major": ["3"]}}'
    products = '"bmm1_dot_dimension_numbers": {"lhs_contracting_dimensions": ["3"]}'
    config = f'backend_config={{"intermediate_tensor_shape": {scores}, {products}}}'
    return f'{results} custom-call(%q, %k, %v), custom_call_target="{target}", {config}'


def test_attention_of_cudnn_counts_two_products_forwards_and_five_backwards() -> None:
    queries, keys = "bf16[2,6,3,8]{3,2,1,0}", "bf16[2,5,3,8]{3,2,1,0}"
    given = {"q": queries, "k": keys, "v": keys}
    made = "(bf16[2,3,6,8]{3,1,2,0}, f32[2,3,6]{2,1,0}, u8[64]{0})"
    (forward,) = list_kernels(program_of(attention("__cudnn$fmhaSoftmax", made), **given))
    read = 2 * 2 * 3 * 8 * (6 + 5 + 5)
    flop, written = 4 * 2 * 3 * 6 * 5 * 8, 2 * 2 * 3 * 6 * 8 + 4 * 2 * 3 * 6
    assert forward == Kernel("cudnn fmhaSoftmax", "bf16[2,3,6,8] +1", "", 1, read, written, flop)
    (backward,) = list_kernels(program_of(attention("__cudnn$fmhaSoftmaxBackward", made), **given))
    assert backward.flop == 2.5 * flop


IMAGES, FILTERS, OUTPUTS = "bf16[2,16,16,3]{3,2,1,0}", "bf16[7,4,4,3]{3,2,1,0}", "bf16[2,5,5,7]{3,2,1,0}"


@pytest.mark.parametrize(
    ("target", "result", "operands"),
    [
        ("__cudnn$convForward", OUTPUTS, (IMAGES, FILTERS)),
        ("__cudnn$convBiasActivationForward", OUTPUTS, (IMAGES, FILTERS, "bf16[7]{0}")),
        ("__cudnn$convBackwardInput", IMAGES, (OUTPUTS, FILTERS)),
        ("__cudnn$convBackwardFilter", FILTERS, (IMAGES, OUTPUTS)),
    ],
)
def test_convolutions_and_their_gradients_cost_the_same(target: str, result: str, operands: tuple[str, ...]) -> None:
    names = [f"x{i}" for i in range(len(operands))]
    given = ", ".join(f"%{name}" for name in names)
    instruction = f"({result}, u8[0]{{0}}) custom-call({given}), window={{size=4x4}}, dim_labels=b01f_o01i->b01f"
    program = program_of(f'{instruction}, custom_call_target="{target}"', **dict(zip(names, operands, strict=True)))
    (kernel,) = list_kernels(program)
    assert kernel.flop == 2 * (2 * 5 * 5 * 7) * (4 * 4 * 3)
    assert kernel.read == sum(map(size, operands))


def test_what_a_line_of_code_made() -> None:
    head = f"""
HloModule jit_step

FileNames
1 "{REPOSITORY}/synthjax/models/layers.py"
2 "/elsewhere/normalization.py"

FunctionNames
1 "f"

FileLocations
1 {{file_name_id=1 function_name_id=1 line=7 end_line=8 column=1 end_column=2}}
2 {{file_name_id=2 function_name_id=1 line=9 end_line=9 column=1 end_column=2}}

StackFrames
1 {{file_location_id=1 parent_frame_id=1}}
2 {{file_location_id=2 parent_frame_id=2}}
3 {{file_location_id=2 parent_frame_id=1}}

"""
    assert sources(head, REPOSITORY / "synthjax") == {1: "layers.py:7", 2: "layers.py:7", 3: ""}
    path = "jit(step)/transpose(jvp())/while/body/closed_call/checkpoint/rematted_computation/bnd,de->bne/dot_general"
    copy = f'f32[2]{{0}} copy(%x), metadata={{op_name="{path}" stack_frame_id=2}}'
    (kernel,) = list_kernels(head + program_of(copy, x="f32[2]{0}"))
    assert kernel.where == "layers.py:7 transpose(jvp())/bnd,de->bne/dot_general"


def test_fusions_of_triton_are_told() -> None:
    softmax = "ROOT %triton_softmax.2 = f32[8]{0} fusion(%fusion.1), calls=%double"
    program = f"""
%double (x: f32[8]) -> f32[8] {{
  %x = f32[8]{{0}} parameter(0)
  ROOT %sum = f32[8]{{0}} add(%x, %x)
}}

ENTRY %main (x: f32[8]) -> f32[8] {{
  %x = f32[8]{{0}} parameter(0)
  %fusion.1 = f32[8]{{0}} fusion(%x), calls=%double, backend_config={{"fusion_backend_config":{{"kind":"__triton"}}}}
  {softmax}, backend_config={{"fusion_backend_config":{{"kind":"__triton"}}}}
}}
"""
    kernels = list_kernels(program)
    assert [kernel.kind for kernel in kernels] == ["triton fusion", "triton_softmax"]
    assert [kernel.read for kernel in kernels] == [8 * 4, 8 * 4]


def test_dtypes_of_all_sizes() -> None:
    types = "(pred[3]{0}, bf16[2,5]{1,0}, /*index=2*/f32[], c64[2]{0})"
    assert arrays(types) == [("pred", (3,)), ("bf16", (2, 5)), ("f32", ()), ("c64", (2,))]
    assert size(types) == 3 + 20 + 4 + 16


def test_all_branches_are_called() -> None:
    line = "  %c = f32[] conditional(%i, %x, %x), branch_computations={%first, %second.1}, metadata={}"
    assert called(line) == ["first", "second.1"]
    assert called("  %f = f32[] fusion(%x), kind=kLoop, calls=%one") == ["one"]


def test_the_scan_of_a_compiled_program() -> None:
    """As XLA prints programs now, of CPUs, which are everywhere."""

    def turn(x: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.tanh(x @ w), x.sum()

    x, layers = jax.device_put((jnp.ones((16, 32)), jnp.ones((7, 32, 32))), jax.devices("cpu")[0])
    scan = jax.jit(lambda x, layers: jax.lax.scan(turn, x, layers))
    kernels = list_kernels(scan.lower(x, layers).compile().as_text())
    assert all(kernel.read + kernel.written > 0 for kernel in kernels)
    in_loop = [kernel for kernel in kernels if kernel.runs == 7]
    assert len(in_loop) > 2
    assert {kernel.runs for kernel in kernels} == {1, 7}
    assert max(kernel.read for kernel in in_loop) < layers.nbytes  # One layer of them at a turn.
    assert any("tanh" in kernel.where for kernel in in_loop)


KERNEL = Kernel("fusion", "f32[2]", "here", runs=2, read=3_000_000, written=1_000_000, flop=0)
GPU = Gpu("", flops=1e12, bandwidth=1e9)


def test_estimates_are_the_larger_limit_and_a_launch() -> None:
    assert GPU.seconds(KERNEL) == pytest.approx(4e-3 + LAUNCH_SECONDS)
    assert GPU.seconds(replace(KERNEL, flop=3 * 10**9)) == pytest.approx(4e-3 + LAUNCH_SECONDS)
    assert GPU.seconds(replace(KERNEL, flop=5 * 10**9)) == pytest.approx(5e-3 + LAUNCH_SECONDS)


def test_totals_are_of_all_runs() -> None:
    product = replace(KERNEL, runs=3, flop=5 * 10**9)
    assert totals([KERNEL, product], GPU) == {
        "estimated_ms": pytest.approx(2 * 4 + 3 * 5 + 5e3 * LAUNCH_SECONDS),
        "products_alone_ms": pytest.approx(3 * 5),
        "kernels": 5,
        "gb_through_memory": pytest.approx(5 * 4e-3),
        "tflop_of_products": pytest.approx(3 * 5e-3),
    }


def test_kernels_alike_are_one_row_and_the_heaviest_is_first() -> None:
    others = [replace(KERNEL, runs=1, where="there"), replace(KERNEL, runs=1, read=1), replace(KERNEL, runs=5)]
    first, *rest = rows([KERNEL, *others], GPU)
    seconds = 4e-3 + LAUNCH_SECONDS
    share = 7 * seconds / (8 * seconds + 1e-3 + 1e-9 + LAUNCH_SECONDS)
    assert first == {
        "name": "fusion f32[2]",
        "runs": 7,
        "ms": pytest.approx(7e3 * seconds),
        "percent": pytest.approx(100 * share),
        "mb_read": 3,
        "mb_written": 1,
        "gflop": 0,
        "where": "here",
    }
    assert [(row["runs"], row["where"]) for row in rest] == [(1, "there"), (1, "here")]


def test_the_table_has_the_first_rows_and_the_json_all(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    report = Report()
    report.setting, report.rows = {"kernels": 5}, [{"name": name, "ms": 1.0} for name in ("one", "two", "three")]
    report.tell(str(tmp_path / "figures.json"), top=2)
    printed = capsys.readouterr().out
    assert "two" in printed
    assert "three" not in printed
    assert [row["name"] for row in json.loads((tmp_path / "figures.json").read_text())["rows"]] == [
        "one",
        "two",
        "three",
    ]


@pytest.mark.parametrize(("name", "bandwidth"), [("h100", 3.35232e12), ("h200", 4.8e12)])
def test_gpus_are_described(name: str, bandwidth: float) -> None:
    gpu = Gpu.named(name, "bfloat16")
    assert (gpu.flops, gpu.bandwidth) == (PRODUCT_FLOPS[name], bandwidth)
    assert Gpu.named(name, "float32").flops == PRODUCT_FLOPS[name] / 2
    assert f"NVIDIA {name.upper()}" in gpu.description
    assert {path.stem for path in (REPOSITORY / "scripts" / "gpus").iterdir()} == {*PRODUCT_FLOPS}


@pytest.mark.parametrize(
    ("dtype", "setting", "kernel"),
    [("bfloat16", "auto", "cudnn"), ("bfloat16", "xla", "xla"), ("float32", "auto", "xla")],
)
def test_attention_is_what_the_gpu_would_choose(dtype: str, setting: str, kernel: str) -> None:
    config = tiny_config(compute_dtype=dtype, attention=setting)
    trainer = trainer_for_gpu(config)
    model = nnx.merge(trainer.graph, trainer.abstract)
    taken = {part.attention_kernel for _, part in nnx.iter_modules(model) if hasattr(part, "attention_kernel")}
    assert (trainer.attention_kernel, taken) == (kernel, {kernel})


def tiny_config(**changes: Any) -> ml_collections.ConfigDict:
    config = get_config()
    config.update_from_flattened_dict(TINY | changes)
    return config


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((IMPORTANT, "--gpu=tpu"), ("--gpu=tpu", "h100|h200")),
        ((IMPORTANT, "--config.mesh.model=2"), ("mesh.model=2 does not divide the 1 devices",)),
        ((IMPORTANT, "--devices=12"), ("--devices=12", "hosts of 8")),
        (("--config=configs/k_osc.py", "--program=sample"), ("data.source=k_osc", "config of shards")),
        ((IMPORTANT, "--program=sample", "--config.sampling.solver=dopri5"), ("dopri5", "weights", "rk4")),
    ],
)
def test_what_cannot_be_compiled_is_told_in_one_line(flags: tuple[str, ...], words: tuple[str, ...]) -> None:
    assert_usage_error(run_script("gpu_kernels", *flags), *words)


@pytest.mark.skipif(importlib.util.find_spec(PLUGIN) is not None, reason="the plugin is here")
def test_without_the_plugin_it_is_asked_for() -> None:
    assert_usage_error(run_script("gpu_kernels", IMPORTANT), "CUDA plugin", "pip install -r requirements-gpu.txt")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec(PLUGIN) is None, reason="needs JAX's CUDA plugin")
@pytest.mark.parametrize(("axes", "devices"), [((), 8), (("--config.mesh.model=2", "--config.mesh.fsdp=True"), 16)])
def test_a_step_compiled_for_several_gpus(tmp_path: Path, axes: tuple[str, ...], devices: int) -> None:
    tiny = [f"--config.{key}={value}" for key, value in (TINY | {"compute_dtype": "bfloat16"}).items()]
    flags = [*tiny, *axes, f"--devices={devices}", f"--json={tmp_path / 'figures.json'}"]
    result = run_script("gpu_kernels", IMPORTANT, *flags)
    assert result.returncode == 0, result.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["mesh"] == ("8 data x 1 model" if not axes else "8 data x 2 model")
    assert figures["network_mb"] > 0
    assert figures["memory_gb"] > figures["temporary_gb"] > 0


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec(PLUGIN) is None, reason="needs JAX's CUDA plugin")
@pytest.mark.parametrize("program", ["step", "sample"])
def test_programs_compiled_for_a_gpu(tmp_path: Path, program: str) -> None:
    tiny = [f"--config.{key}={value}" for key, value in (TINY | {"compute_dtype": "bfloat16"}).items()]
    result = run_script(
        "gpu_kernels", IMPORTANT, f"--program={program}", "--top=3", f"--json={tmp_path / 'figures.json'}", *tiny
    )
    assert result.returncode == 0, result.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["gpu"], figures["attention"]) == ("NVIDIA H200 141GB HBM3e", "cudnn")
    assert figures["batch_size"] == TINY["data.batch_size" if program == "step" else "sampling.batch_size"]
    assert figures["kernels"] == sum(row["runs"] for row in figures["rows"])
    assert figures["estimated_ms"] == pytest.approx(sum(row["ms"] for row in figures["rows"]))
    assert figures["estimated_ms"] > figures["products_alone_ms"] > 0
    names = {row["name"].split(" bf16[")[0] for row in figures["rows"]}
    assert {"cublas lt matmul", "cudnn fmhaSoftmax"} <= names
    assert ("cudnn fmhaSoftmaxBackward" in names) == (program == "step")
    assert len(result.stdout.split("\n\n")[1].splitlines()) == 4
