"""Bundles: reading and writing, and what is refused."""

from __future__ import annotations

import hashlib
import json
import threading
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save

from data_pipeline.console.cli import UserError
from data_pipeline.params.spec import load_spec
from synthjax.runs import bundles
from synthjax.runs.bundles import ABOUT, CARD, LIBRARY, WEIGHTS, Bundle, read_bundle, write_bundle

SPEC = load_spec("subtractive")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "bundle.zip"
    write_bundle(path, SPEC, {"licence": "CC0"}, "# A card\n", {LIBRARY: b"an index"})
    return path


def test_a_bundle_is_read_as_it_was_written(path: Path, tmp_path: Path) -> None:
    bundle = read_bundle(str(path))
    assert bundle.spec.content_hash == SPEC.content_hash
    assert bundle.about["licence"] == "CC0"
    assert bundle.card == "# A card\n"
    assert bundle.library == b"an index"
    assert not bundle.has_model
    write_bundle(tmp_path / "again.zip", SPEC, {"licence": "CC0"}, "# A card\n", {LIBRARY: b"an index"})
    assert (tmp_path / "again.zip").read_bytes() == path.read_bytes()


def rewritten(path: Path, change: str) -> None:
    with zipfile.ZipFile(path) as file:
        content = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        match change:
            case "outside":
                content["../outside.txt"] = b"!"
            case "code":
                content["setup.py"] = b"import os"
            case "bomb":
                content[WEIGHTS] = bytes(50 << 20)
            case "changed":
                content[LIBRARY] = b"another index"
            case "missing":
                del content[LIBRARY]
            case "no about":
                del content[ABOUT]
            case "version":
                content[ABOUT] = json.dumps({**json.loads(content[ABOUT]), "version": 99}).encode()
            case "about":
                content[ABOUT] = b"[1]"
            case "deep":
                content[ABOUT] = b"[" * 100_000
            case "no model":
                content[WEIGHTS] = b"weights"
                about = json.loads(content[ABOUT])
                about["sha256"][WEIGHTS] = hashlib.sha256(b"weights").hexdigest()
                content[ABOUT] = json.dumps({**about, "checkpoint": 3}).encode()
        for name, data in content.items():
            file.writestr(name, data, zipfile.ZIP_LZMA if change == "lzma" else None)
        if change == "twice":
            with pytest.warns(UserWarning, match="Duplicate"):
                file.writestr(CARD, content[CARD])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("outside", "no bundle holds '../outside.txt'"),
        ("code", "no bundle holds 'setup.py'"),
        ("bomb", f"{WEIGHTS} would unpack to {50 << 20} bytes"),
        ("changed", f"{LIBRARY} is not the file that was bundled"),
        ("missing", f"{LIBRARY} is missing"),
        ("no about", f"it has no '{ABOUT}'"),
        ("version", "it is of version 99, not 1"),
        ("about", "is no bundle"),
        ("deep", "is no bundle"),
        ("twice", "it holds a file twice"),
        ("lzma", "is compressed in another way"),
        ("no model", "it has no 'config.json'"),
    ],
)
def test_a_hostile_or_damaged_bundle_is_refused(path: Path, change: str, words: str) -> None:
    rewritten(path, change)
    with pytest.raises(UserError) as error:
        read_bundle(str(path))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_any_cut_and_any_flipped_byte_is_refused_or_changes_nothing(path: Path) -> None:
    whole = path.read_bytes()
    expected = read_bundle(str(path)).files
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged if rng.random() < 0.7 else whole[: rng.integers(len(whole))])
        with suppress(UserError):
            assert read_bundle(str(path)).files == expected


def test_a_name_that_is_neither_file_nor_shipped_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no bundle nowhere: name a file, a URL, or one that ships"):
        read_bundle("nowhere")


def test_weights_must_fit() -> None:
    bundle = Bundle("a", {}, {WEIGHTS: save({"layers/0/kernel": np.ones((2, 3), np.float32)})})
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def abstract(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, np.float32, sharding=place)

    loaded = bundle.params({"layers": {0: {"kernel": abstract(2, 3)}}})
    np.testing.assert_array_equal(loaded["layers"][0]["kernel"], np.ones((2, 3)))
    for wrong in ({"kernel": abstract(3, 2)}, {"bias": abstract(2, 3)}):
        with pytest.raises(UserError, match="the weights do not fit the config, such as layers/0/"):
            bundle.params({"layers": {0: wrong}})


@pytest.fixture
def served(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a folder that is served; http stands for https."""
    monkeypatch.setenv("SYNTHJAX_CACHE", str(path.parent / "cache"))
    handler = partial(SimpleHTTPRequestHandler, directory=str(path.parent))
    with ThreadingHTTPServer(("localhost", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(bundles, "WEB", ("http://",))
        yield f"http://localhost:{server.server_port}/{path.name}"
        server.shutdown()


def test_a_url_is_fetched_once_and_checked(served: str, path: Path) -> None:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_bundle(f"{served}#sha256={digest}").library == b"an index"
    path.unlink()
    assert read_bundle(served).library == b"an index"
    with pytest.raises(UserError, match="is not the bundle that was asked for"):
        read_bundle(f"{served}#sha256={'0' * 64}")
    with pytest.raises(UserError, match="what follows the # must be sha256="):
        read_bundle(f"{served}#sha256=12")


def test_a_url_without_a_bundle_is_refused(served: str) -> None:
    with pytest.raises(UserError, match="cannot be fetched"):
        read_bundle(served.replace("bundle.zip", "none.zip"))
