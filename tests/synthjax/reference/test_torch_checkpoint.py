"""PyTorch's checkpoints read without PyTorch: real ones give every weight, others are refused with one line."""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.console.cli import UserError
from synthjax.reference import torch_checkpoint
from synthjax.reference.torch_checkpoint import read_checkpoint
from tests.synthjax.torch_files import Call, Name, Persistent, Raw, opcodes, tensor, write_archive, write_checkpoint

VALUES = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
STEPS = 1234  # Of the reference's small model.
ORDERED_DICT = Name("collections", "OrderedDict")


def refused(path: Path, *words: str) -> None:
    with pytest.raises(UserError) as error:
        read_checkpoint(path)
    message = str(error.value)
    assert message.isprintable(), message
    for word in (str(path), *words):
        assert word in message


def write_pickle(path: Path, value: Any, storages: dict[str, bytes] | None = None) -> Path:
    return write_archive(path, b"\x80\x02" + opcodes(value) + b".", storages or {})


def with_tensor(path: Path, **changes: Any) -> Path:
    """A checkpoint with one tensor, whose description is changed."""
    saved = {"state_dict": {"w": tensor("0", VALUES, **changes)}, "global_step": 1}
    return write_pickle(path, saved, {"0": VALUES.tobytes()})


@pytest.mark.parametrize("name", ["surge_flow", "surge_flow_compiled"])
def test_a_real_checkpoint_gives_every_weight_exactly(shared_data: Path, name: str) -> None:
    checkpoint = read_checkpoint(shared_data / "reference" / f"{name}.ckpt")
    with np.load(shared_data / "reference" / "surge_flow.npz", allow_pickle=False) as file:
        expected = {key.removeprefix("weights/"): file[key] for key in file if key.startswith("weights/")}
    weights = {key.replace("_orig_mod.", ""): value for key, value in checkpoint.weights.items()}
    assert weights.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(weights[key], value, err_msg=key)
    assert checkpoint.global_step == STEPS
    assert ("encoder._orig_mod.embed_tokens" in checkpoint.weights) == ("compiled" in name)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int64, jnp.bfloat16])
def test_every_kind_of_number_is_read(tmp_path: Path, dtype: Any) -> None:
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "a.ckpt", {"w": VALUES.astype(dtype)}))
    assert checkpoint.weights["w"].dtype == dtype
    np.testing.assert_array_equal(checkpoint.weights["w"], VALUES.astype(dtype))
    assert checkpoint.global_step == 7


def test_views_of_one_storage_are_what_their_strides_say(tmp_path: Path) -> None:
    described = {
        "transposed": tensor("0", VALUES, shape=(4, 3, 2), strides=(1, 4, 12)),
        "row": tensor("0", VALUES, offset=8, shape=(4,), strides=(1,)),
        "scalar": tensor("0", VALUES, offset=23, shape=(), strides=()),
        "empty": tensor("0", VALUES, offset=24, shape=(0, 4), strides=(4, 1)),
    }
    path = write_pickle(tmp_path / "a.ckpt", {"state_dict": described, "global_step": 1}, {"0": VALUES.tobytes()})
    weights = read_checkpoint(path).weights
    np.testing.assert_array_equal(weights["transposed"], VALUES.T)
    np.testing.assert_array_equal(weights["row"], VALUES[0, 2])
    assert weights["scalar"] == VALUES[-1, -1, -1]
    assert weights["empty"].shape == (0, 4)


def beside_the_weights() -> dict[str, Any]:
    """Entries that Lightning and the reference keep beside the weights."""
    moment = tensor("0", VALUES)
    parameter = Call(Name("torch._utils", "_rebuild_parameter"), (moment, True, Call(ORDERED_DICT, ())))
    module = Call(
        Name("src.models.components.transformer", "ApproxEquivTransformer"),
        (),
        {"_parameters": {"weight": parameter}, "activation": Name("torch._C._nn", "gelu"), "training": True},
    )
    linear = Raw(opcodes(Name("torch.nn.modules.linear", "Linear")) + b")\x81" + opcodes({"in_features": 3}) + b"b")
    adam = Call(Name("functools", "partial"), (Name("torch.optim.adam", "Adam"),), (None, (), {"lr": 1e-4}, None))
    scalar = Call(Name("numpy.core.multiarray", "scalar"), (Call(Name("numpy", "dtype"), ("f8", False, True)), "\0"))
    return {
        "hyper_parameters": {"encoder": linear, "field": module, "optimizer": adam, "num_params": 92, "compile": False},
        "callbacks": {
            "ModelCheckpoint{'monitor': None}": {"dirpath": Call(Name("pathlib", "PosixPath"), ("runs", "a"))},
            Name("lightning.pytorch.callbacks.lr_monitor", "LearningRateMonitor"): {"best": scalar, "kept": []},
        },
        "optimizer_states": [{"state": {0: {"step": moment, "exp_avg": moment}}, "param_groups": [{"lr": 0.1}]}],
        "config": Call(Name("omegaconf.dictconfig", "DictConfig"), (), {"_content": {"a": Name("typing", "Any")}}),
        "modules": Call(Name("__builtin__", "set"), (["a", "b"],)),
        "items": Raw(opcodes(Call(Name("collections", "defaultdict"), ())) + opcodes((1, 2)) + b"Ns"),
        "big": 2**40,
        "flag": True,
        "none": None,
    }


def test_what_lies_beside_the_weights_does_not_matter(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "a.ckpt", {"w": VALUES}, **beside_the_weights())
    np.testing.assert_array_equal(read_checkpoint(path).weights["w"], VALUES)


def test_a_state_dict_may_be_an_ordered_dict_with_metadata(tmp_path: Path) -> None:
    items = opcodes("w") + opcodes(tensor("0", VALUES))
    state = opcodes({"_metadata": Call(ORDERED_DICT, ())}) + b"b"
    ordered = opcodes(Call(ORDERED_DICT, ())) + b"(" + items + b"u" + state
    path = write_pickle(tmp_path / "a", {"state_dict": Raw(ordered), "global_step": 1}, {"0": VALUES.tobytes()})
    np.testing.assert_array_equal(read_checkpoint(path).weights["w"], VALUES)


def test_names_that_are_expected_are_not_imported_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    evil = Call(Name("src.evil", "Thing"), ("argument",), {"state": 1})
    read_checkpoint(write_checkpoint(tmp_path / "a.ckpt", {"w": VALUES}, hyper_parameters=evil))
    assert not (tmp_path / "ran").exists()
    assert "src.evil" not in sys.modules


class Reduces:
    """Pickled, it has whoever unpickles it call a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> Any:
        return self.reduced


def code_that_touches(path: Path) -> dict[str, Reduces]:
    source = f"open({str(path)!r}, 'w')"
    return {
        "posix.system": Reduces(os.system, f"touch {path}"),
        "eval": Reduces(eval, source),
        "exec": Reduces(exec, source),
        "Popen": Reduces(subprocess.Popen, ["touch", str(path)]),
        "getattr": Reduces(getattr, Reduces(__import__, "os"), "system"),
    }


@pytest.mark.parametrize("name", ["posix.system", "eval", "exec", "Popen", "getattr"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path, name: str, protocol: int) -> None:
    pickled = pickle.dumps({"state_dict": {}, "hook": [code_that_touches(tmp_path / "ran")[name]]}, protocol)
    refused(write_archive(tmp_path / "a.ckpt", pickled, {}), *([name] if protocol == 2 else []))
    assert not (tmp_path / "ran").exists()


def test_such_a_pickle_does_run_code_elsewhere(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(code_that_touches(tmp_path / "ran")["eval"], 2)).close()
    assert (tmp_path / "ran").exists()


def hidden_calls() -> dict[str, Any]:
    """The call of os.system in all the places where a pickle may have one."""
    call = Call(Name("os", "system"), ("true",))
    inner = (opcodes(call) + b".").decode("latin-1")
    return {
        "state_dict": {"state_dict": call},
        "weight": {"state_dict": {"w": call}},
        "argument of a tensor": {"state_dict": {"w": Call(Name("torch._utils", "_rebuild_tensor_v2"), (call,))}},
        "argument of an argument": {"hook": Call(Name("functools", "partial"), ([{"a": (call,)}],))},
        "state": {"hook": Call(Name("torch.nn.modules.linear", "Linear"), (), {"forward": call})},
        "key": {"hook": Raw(b"}(" + opcodes(call) + b"Nu")},
        "persistent id": {"state_dict": {"w": Persistent(("storage", call, "0", "cpu", 1))}},
        "partial": {"hook": Call(Name("functools", "partial"), (Name("os", "system"), "true"))},
        "another pickle": {"hook": Call(Name("torch.storage", "_load_from_bytes"), (inner,))},
        "hub": {"hook": Call(Name("torch.hub", "load"), ("someone/repository", "model"))},
        "attribute of a module": {"hook": Call(Name("torch", "serialization.os.system"), ("true",))},
        "another language": {"hook": Call(Name("os", "system\u2028"), ("true",))},
        "INST": {"hook": Raw(b"(" + opcodes("true") + b"ios\nsystem\n")},
        "OBJ": {"hook": Raw(b"(" + opcodes(Name("os", "system")) + opcodes("true") + b"o")},
        "NEWOBJ": {"hook": Raw(opcodes(Name("os", "system")) + opcodes(("true",)) + b"\x81")},
        "EXT": {"hook": Raw(b"\x82\x01")},
        "what a call returned": {"hook": Raw(opcodes(Call(Name("functools", "partial"), ())) + b")R")},
    }


@pytest.mark.parametrize("place", hidden_calls())
def test_code_is_refused_wherever_it_hides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    ran: list[str] = []
    monkeypatch.setattr(os, "system", ran.append)
    refused(write_pickle(tmp_path / "a.ckpt", {"global_step": 1, "state_dict": {}} | hidden_calls()[place]))
    assert not ran


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shape": (2, 3, 5)}, "reaches beyond its storage"),
        ({"offset": 1}, "reaches beyond its storage"),
        ({"offset": 25, "shape": (0,), "strides": (1,)}, "reaches beyond its storage"),
        ({"strides": (0, 0, 0), "shape": (100, 100, 100)}, "reaches beyond its storage"),
        ({"strides": (12, 4, 2)}, "reaches beyond its storage"),
        ({"offset": -1}, "malformed"),
        ({"strides": (-12, 4, 1)}, "malformed"),
        ({"shape": (2, 3)}, "malformed"),
        ({"shape": (True, 3, 4)}, "malformed"),
        ({"shape": 24, "strides": 1}, "malformed"),
        ({"shape": (1,) * 9, "strides": (1,) * 9}, "malformed"),
        ({"shape": (2**62, 2**62, 2**62)}, "reaches beyond its storage"),
        ({"count": 23}, "its storage has 24 elements"),
        ({"count": None}, "its storage has 24 elements"),
        ({"kind": "ComplexFloatStorage"}, "torch.ComplexFloatStorage"),
        ({"kind": "DoubleStorage"}, "its storage has 12 elements"),
        ({"key": "1"}, "lacks 'data/1'"),
        ({"key": "../data.pkl"}, "lacks 'data/../data.pkl'"),
        ({"key": 0}, "no storage"),
    ],
)
def test_a_tensor_stays_within_its_storage(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    refused(with_tensor(tmp_path / "a.ckpt", **changes), "w: ", words)


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        ({"global_step": 1}, "no state_dict"),
        ([], "no state_dict"),
        ({"state_dict": [], "global_step": 1}, "no state_dict"),
        ({"state_dict": {}}, "no global_step"),
        ({"state_dict": {}, "global_step": -1}, "no global_step"),
        ({"state_dict": {}, "global_step": True}, "no global_step"),
        ({"state_dict": {"w": 1.0}, "global_step": 1}, "w is not a tensor"),
        ({"state_dict": {"\x1b[31m": 1.0}, "global_step": 1}, "the key '\\x1b[31m'"),
        ({"state_dict": {"\ud800": 1.0}, "global_step": 1}, "the key"),
        ({"state_dict": {5: 1.0}, "global_step": 1}, "the key 5"),
        ({(1, 2): 1.0}, "damaged"),
        ({2**61 - 1: 1.0}, "damaged"),
        (Raw(b"N0X\x01\0\0\0"), "exhausted before seeing STOP"),
        (Raw(b")"), "no state_dict"),
        (Raw(b""), "damaged"),
        (Raw(b"u"), "damaged"),
        (Raw(b"h\x05"), "damaged"),
        (Raw(b"NNa"), "damaged"),
        (Raw(b"NNNs"), "damaged"),
        (Raw(b"}(Nu"), "damaged"),
        (Raw(b"NQ"), "damaged"),
        (Raw(b"X\xff\xff\xff\xff"), "expected 4294967295 bytes"),
        (Raw(b"\x8b\xff\xff\xff\x7f"), "not enough data"),
        (Raw(b"\x8b\xff\xff\xff\xff"), "byte count < 0"),
        (Raw(b"\x8e" + b"\xff" * 8), "bytes8 byte count"),
        (Raw(b"\x8e" + bytes(8)), "the opcode BINBYTES8"),
        (Raw(b"N2"), "the opcode DUP"),
        (Raw(b"\x95" + b"\xff" * 8), "the opcode FRAME"),
        (Raw(b"Nr\xff\xff\xff\xff"), "remembers a value as number 4294967295"),
        (Raw(b"Nr\xff\xff\xff\x7f"), "remembers a value as number 2147483647"),
        (Raw(b"(0N(0e"), "damaged"),
        (Raw(b"]N(NNs"), "damaged"),
        (Raw(b"}}b"), "damaged"),
        (Raw(b"N}b"), "damaged"),
        (Raw(b")NNs"), "damaged"),
        (Raw(opcodes(Name("torch.nn", "Linear")) + b"Nb"), "damaged"),
        (Raw(opcodes(Name("torch", "FloatStorage")) + b")R"), "damaged"),
        (Raw(opcodes(Name("torch", "FloatStorage")) + b")\x81"), "damaged"),
        (Raw(opcodes(Name("torch._utils", "_rebuild_tensor_v2")) + opcodes((1, 2, 3, 4)) + b"\x81"), "damaged"),
        (Call(Name("torch._utils", "_rebuild_tensor_v2"), ()), "damaged"),
        (Call(Name("torch._utils", "_rebuild_tensor_v2"), (1, 2, 3)), "damaged"),
        (Call(ORDERED_DICT, ([("state_dict", {})],)), "no state_dict"),
        (Raw(opcodes(Call(ORDERED_DICT, ())) + opcodes((1, 2)) + b"Ns"), "damaged"),
        (Raw(opcodes(Call(ORDERED_DICT, ())) + opcodes(2**61 - 1) + b"Ns"), "damaged"),
        (Raw(b"}(" + opcodes(Call(ORDERED_DICT, ())) + b"Nu"), "damaged"),
        ({"state_dict": Call(Name("torch.nn", "Linear"), ())}, "no state_dict"),
    ],
)
def test_other_pickles_are_refused(tmp_path: Path, saved: Any, words: str) -> None:
    refused(write_pickle(tmp_path / "a.ckpt", saved), words)


@pytest.mark.parametrize("opcode", [b"\x85", b"\x86", b"a"])
def test_deep_nesting_is_refused(tmp_path: Path, opcode: bytes) -> None:
    """As a key and as a value: tuples of one and two, and lists."""
    before = {b"\x85": b"N", b"\x86": b"N" * 300_001, b"a": b"]" * 300_001}[opcode]
    deep = Raw(before + opcode * 300_000)
    refused(write_checkpoint(tmp_path / "value.ckpt", {"w": VALUES}, deep=deep), "deep")
    refused(write_pickle(tmp_path / "key.ckpt", Raw(b"}(" + deep.opcodes + b"Nu")))


def test_loops_and_shared_values_are_harmless(tmp_path: Path) -> None:
    """Among them a tuple that would have 2^100 elements if each mention of another one were a copy."""
    loop = Raw(b"]q\x00h\x00a")
    doubled = b")" + b"".join(b"q%c0h%ch%c\x86" % (i, i, i) for i in range(1, 101))
    chain = b"]q\x01" + b"0]q\x02h\x01a0]q\x01h\x02a" * 50_000  # Nested through the memo, deeper than is noticed.
    beside = {"loop": loop, "doubled": Raw(doubled), "chain": Raw(chain)}
    path = write_checkpoint(tmp_path / "a.ckpt", {"w": VALUES}, **beside)
    np.testing.assert_array_equal(read_checkpoint(path).weights["w"], VALUES)
    refused(write_pickle(tmp_path / "key.ckpt", Raw(b"}(" + doubled + b"Nu")), "damaged")


def test_what_expands_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + b"}" * (100 << 20))
    assert (tmp_path / "bomb.ckpt").stat().st_size < 1 << 20
    refused(tmp_path / "bomb.ckpt", "is compressed")
    refused(
        write_archive(tmp_path / "long.ckpt", b"}" * (torch_checkpoint.MAX_PICKLE_BYTES + 1), {}), "larger than any"
    )
    large = np.zeros(1 << 16, np.float32)
    many = {f"w{index}": tensor("0", large) for index in range(1_000)}
    path = write_pickle(tmp_path / "shared.ckpt", {"state_dict": many, "global_step": 1}, {"0": large.tobytes()})
    refused(path, "its weights overlap")


def test_other_archives_are_refused(tmp_path: Path) -> None:
    pickled = b"\x80\x02" + opcodes({}) + b"."
    with zipfile.ZipFile(tmp_path / "two.ckpt", "w") as archive:
        archive.writestr("a/data.pkl", pickled)
        archive.writestr("b/data.pkl", pickled)
    refused(tmp_path / "two.ckpt", "several data.pkl")
    with zipfile.ZipFile(tmp_path / "twice.ckpt", "w") as archive:
        archive.writestr("a/data.pkl", pickled)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a/data.pkl", pickled)
    refused(tmp_path / "twice.ckpt", "two entries of one name")
    with zipfile.ZipFile(tmp_path / "none.ckpt", "w") as archive:
        archive.writestr("weights.npy", b"")
    refused(tmp_path / "none.ckpt", "no data.pkl")
    refused(write_archive(tmp_path / "big.ckpt", pickled, {}, byteorder=b"big"), "big-endian")


def test_other_files_are_refused(tmp_path: Path) -> None:
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    contents = {
        "plain.pkl": pickle.dumps({"state_dict": {}}),
        "empty.ckpt": b"",
        "model.safetensors": len(header).to_bytes(8, "little") + header + bytes(4),
        "text.ckpt": b"weights",
        "zip.ckpt": b"PK\x05\x06" + bytes(18),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name)
    refused(tmp_path, "not a file")
    refused(tmp_path / "nowhere.ckpt", "does not exist")


def assert_same_or_refused(path: Path) -> None:
    """A damaged file is never read as other weights."""
    try:
        weights = read_checkpoint(path).weights
    except UserError:
        return
    np.testing.assert_array_equal(weights["w"], VALUES)


def test_a_truncated_file_is_refused(shared_data: Path, tmp_path: Path) -> None:
    content = (shared_data / "reference" / "surge_flow.ckpt").read_bytes()
    for length in [*range(0, len(content), 60_000), *range(len(content) - 200, len(content), 7), len(content) - 1]:
        (tmp_path / "short.ckpt").write_bytes(content[:length])
        refused(tmp_path / "short.ckpt")


def test_a_damaged_byte_is_noticed_or_does_not_matter(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "a.ckpt", {"w": VALUES}, hyper_parameters={"a": [1, 2.0, "b"]})
    content, rng = path.read_bytes(), random.Random(0)
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        assert_same_or_refused(path)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pickles") / "a.ckpt"


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(changes=st.lists(st.tuples(st.integers(0, 1 << 16), st.binary(max_size=6)), min_size=1, max_size=4))
def test_any_pickle_is_read_or_refused(scratch: Path, changes: list[tuple[int, bytes]]) -> None:
    """With checksums that are right, so that the pickle itself is what is read."""
    described = {"w": tensor("0", VALUES), **{f"v{index}": tensor("0", VALUES) for index in range(3)}}
    saved = {"state_dict": described, "global_step": 1} | beside_the_weights()
    pickled = bytearray(b"\x80\x02" + opcodes(saved) + b".")
    for position, replacement in changes:
        start = position % len(pickled)
        pickled[start : start + len(replacement)] = replacement
    with suppress(UserError):
        read_checkpoint(write_archive(scratch, bytes(pickled), {"0": VALUES.tobytes()}))
