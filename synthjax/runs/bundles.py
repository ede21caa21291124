"""Bundles: a model, a library of known patches, or both, in one zip file that is used as it is.

bundle.json            what the bundle is, and the SHA-256 of every other file
README.md              the same for people: the card
config.json, stats.safetensors, weights.safetensors     the model
library.safetensors    the library, an index as ``synthjax.library`` makes it

Nothing in a bundle is executed, and nothing is unpacked to the disk.
"""

from __future__ import annotations

import hashlib
import json
import re
import urllib.request
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from data_pipeline.cloud.local import LocalFolder
from data_pipeline.cloud.staging import cache_folder, cache_root
from data_pipeline.cloud.sync import fetch
from data_pipeline.cloud.urls import is_url, open_cloud
from data_pipeline.console.atomic import atomic_path, make_folder
from data_pipeline.console.cli import UserError
from data_pipeline.console.file_lock import exclusive
from data_pipeline.console.os_errors import why
from data_pipeline.console.progress import progress_bar
from data_pipeline.params.spec import ParamSpec, parse_spec, spec_json
from data_pipeline.shards.mel_stats import MelStats
from synthjax.runs.workdir import config_of

VERSION = 1
ABOUT, CARD = "bundle.json", "README.md"
CONFIG, STATS, WEIGHTS, LIBRARY = "config.json", "stats.safetensors", "weights.safetensors", "library.safetensors"
# The files that a bundle may hold, and their largest sizes in bytes.
MEMBERS = {ABOUT: 16 << 20, CARD: 1 << 20, CONFIG: 1 << 20, STATS: 8 << 20, WEIGHTS: 8 << 30, LIBRARY: 4 << 30}
# No array of numbers is compressed more than this many times. Such a file was made to fill the memory.
MOST_COMPRESSED = 20
ENDING = ".zip"
# The bundles that ship with the package.
SHIPPED = resources.files("synthjax") / "bundles"
# The beginnings of URLs that are fetched from the web; all others lie in a cloud.
WEB = ("https://",)
SECONDS_WITHOUT_ANSWER = 60.0
# The earliest time that a zip file can hold. A fixed time makes equal contents give equal files.
_NO_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, eq=False)
class Bundle:
    """A bundle in memory.

    Attributes:
      name: where it is from.
      about: the content of bundle.json: ``version``, ``spec`` and ``licence``; of a library also ``synth`` (name and
        version), of a model ``checkpoint`` and ``scores``.
      files: the other files by name.
    """

    name: str
    about: Mapping[str, Any]
    files: Mapping[str, bytes] = field(repr=False)

    @property
    def spec(self) -> ParamSpec:
        """The spec of the rows."""
        return parse_spec(self.about["spec"], f"of {self.name}")

    @property
    def has_model(self) -> bool:
        """Whether it holds a model."""
        return WEIGHTS in self.files

    @property
    def library(self) -> bytes | None:
        """The content of its library, as ``index.parse_index`` takes it."""
        return self.files.get(LIBRARY)

    @property
    def card(self) -> str:
        """The card, in Markdown."""
        return self.files[CARD].decode(errors="replace")

    def config(self) -> ml_collections.ConfigDict:
        """The config of the model."""
        try:
            return config_of(json.loads(self.files[CONFIG]), self.name)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.name}: {CONFIG} is damaged: {error}") from error

    def stats(self) -> MelStats:
        """The statistics by which the model standardises spectrograms. Raises UserError."""
        tensors = self._tensors(STATS)
        try:
            return MelStats(tensors["mean"], tensors["std"])
        except KeyError as error:
            raise UserError(f"{self.name}: {STATS} has no {error}") from error

    def params(self, abstract: Any) -> Any:
        """The weights on the devices, placed as the abstract tree says. Raises UserError unless all fit."""
        tensors = self._tensors(WEIGHTS)
        leaves, tree = jax.tree_util.tree_flatten_with_path(abstract)
        shapes = {_leaf_name(path): leaf for path, leaf in leaves}
        wrong = sorted(tensors.keys() ^ shapes.keys())
        wrong += sorted(name for name in tensors.keys() & shapes.keys() if tensors[name].shape != shapes[name].shape)
        if wrong:
            raise UserError(f"{self.name}: the weights do not fit the config, such as {wrong[0]}")
        placed = [jax.device_put(tensors[name].astype(leaf.dtype), leaf.sharding) for name, leaf in shapes.items()]
        return jax.tree_util.tree_unflatten(tree, placed)

    def _tensors(self, member: str) -> dict[str, np.ndarray]:
        try:
            return load(self.files[member])
        except (SafetensorError, KeyError, ValueError) as error:  # KeyError: a type that NumPy does not have.
            raise UserError(f"{self.name}: {member} is damaged: {error!r}") from error


def model_files(config: ml_collections.ConfigDict, stats: MelStats, params: Any) -> dict[str, bytes]:
    """The files of a model: config, statistics and weights."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    weights = {_leaf_name(path): np.ascontiguousarray(np.asarray(leaf)) for path, leaf in leaves}
    statistics = {name: np.ascontiguousarray(np.asarray(value)) for name, value in stats._asdict().items()}
    return {CONFIG: json.dumps(config.to_dict()).encode(), STATS: save(statistics), WEIGHTS: save(weights)}


def write_bundle(path: Path, spec: ParamSpec, about: Mapping[str, Any], card: str, files: Mapping[str, bytes]) -> None:
    """Writes a bundle, whole or not at all. Equal contents give equal bytes."""
    files = {CARD: card.encode(), **files}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    described = {"version": VERSION, "spec": spec_json(spec), **about, "sha256": digests}
    whole = {ABOUT: json.dumps(described, indent=1).encode(), **files}
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as file:
        for name, content in whole.items():
            info = zipfile.ZipInfo(name, _NO_TIME)
            if len(zlib.compress(content)) * MOST_COMPRESSED > len(content):
                info.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(info, content)


def shipped() -> list[str]:
    """The names of the bundles that ship with the package."""
    if not SHIPPED.is_dir():
        return []
    return sorted(entry.name.removesuffix(ENDING) for entry in SHIPPED.iterdir() if entry.name.endswith(ENDING))


def read_bundle(name: str) -> Bundle:
    """A bundle by the name of a shipped one, by its path, or by its https, gs or s3 URL.

    A URL is kept in a cache. It may end in ``#sha256=DIGEST``, the SHA-256 of the whole file in hexadecimal digits.
    Raises UserError for a bundle that is missing, damaged, or holds what no bundle holds.
    """
    if is_url(name):
        return _read(_fetched(name), name)
    if name in shipped():
        with resources.as_file(SHIPPED / (name + ENDING)) as path:
            return _read(path, name)
    if not Path(name).is_file():
        raise UserError(
            f"there is no bundle {name}: name a file, a URL, or one that ships with synthjax ({', '.join(shipped())})"
        )
    return _read(Path(name), name)


def _read(path: Path, name: str) -> Bundle:
    try:
        with zipfile.ZipFile(path) as file:
            _check_members(file.infolist(), path.stat().st_size)
            found = {info.filename: _content(file, info) for info in file.infolist()}
        about = json.loads(found.pop(ABOUT))
        if about["version"] != VERSION:
            raise ValueError(f"it is of version {about['version']}, not {VERSION}")
        parse_spec(about["spec"], f"of {name}")
        if WEIGHTS in found:
            int(about["checkpoint"])
        for member in (CARD, *((CONFIG, STATS) if WEIGHTS in found else ())):
            found[member]
        for member, content in found.items():
            if hashlib.sha256(content).hexdigest() != about["sha256"][member]:
                raise ValueError(f"{member} is not the file that was bundled")
        if missing := about["sha256"].keys() - found.keys():
            raise ValueError(f"{min(missing)} is missing")
        return Bundle(name, about, found)
    except OSError as error:
        raise UserError(f"{name} cannot be read: {why(error)}") from error
    except KeyError as error:
        raise UserError(f"{name} is no bundle, or is damaged: it has no {error}") from error
    except (ValueError, TypeError, AttributeError, RecursionError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{name} is no bundle, or is damaged: {error}") from error
    except (NotImplementedError, RuntimeError, zipfile.LargeZipFile) as error:  # Encrypted, or an odd compression.
        raise UserError(f"{name} is no bundle: {error}") from error


def _check_members(infos: Sequence[zipfile.ZipInfo], size: int) -> None:
    """Raises ValueError for files that no bundle of ``size`` bytes holds. Nothing is unpacked."""
    for info in infos:
        if info.filename not in MEMBERS:
            raise ValueError(f"no bundle holds {info.filename[:100]!r}")
        if info.file_size > min(MEMBERS[info.filename], MOST_COMPRESSED * info.compress_size + 4096):
            raise ValueError(f"{info.filename} would unpack to {info.file_size} bytes")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{info.filename} is compressed in another way than bundles are")
    if len({info.filename for info in infos}) < len(infos):
        raise ValueError("it holds a file twice")
    if sum(info.compress_size for info in infos) > size:
        raise ValueError("its files overlap")


def _content(file: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    with file.open(info) as member:
        return member.read(info.file_size)


def _leaf_name(path: Any) -> str:
    """The name of a leaf of a tree of dicts and lists, such as encoder/blocks/0/kernel."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _fetched(url: str) -> Path:
    """The file in the cache of a URL, fetched if it is not there yet. Raises UserError."""
    address, _, fragment = url.partition("#")
    digest = fragment.removeprefix("sha256=").lower()
    if fragment and not re.fullmatch("sha256=[0-9a-fA-F]{64}", fragment):
        raise UserError(f"{url}: what follows the # must be sha256= and 64 hexadecimal digits")
    path = _from_web(address) if address.startswith(WEB) else _from_cloud(address)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if digest and found != digest:
        path.unlink()
        raise UserError(f"{address} is not the bundle that was asked for: its SHA-256 is {found}")
    return path


def _from_web(address: str) -> Path:
    path = cache_root(address) / "bundles" / f"{hashlib.sha256(address.encode()).hexdigest()[:16]}{ENDING}"
    if not path.exists():
        make_folder(path.parent)
        with atomic_path(path) as temporary:
            try:
                _download(address, temporary)
            except (OSError, HTTPException) as error:
                raise UserError(f"{address} cannot be fetched: {error}") from error
    return path


def _download(address: str, path: Path) -> None:
    with urllib.request.urlopen(address, timeout=SECONDS_WITHOUT_ANSWER) as answer, path.open("wb") as file:
        size, done = int(answer.headers.get("Content-Length", 0)), 0
        with progress_bar("fetching MiB", size >> 20) as advance:
            while block := answer.read(1 << 20):
                done += file.write(block)
                advance(len(block) >> 20)
                if done > sum(MEMBERS.values()):
                    raise OSError("it is larger than any bundle")
        if done < size:
            raise OSError(f"it ended after {done} of {size} bytes")


def _from_cloud(address: str) -> Path:
    folder, _, name = address.rpartition("/")
    location = open_cloud(folder)
    target = LocalFolder(cache_folder(location, "bundles"))
    with exclusive(target.folder, print):
        if not target.path(name).exists():
            found = [entry for entry in location.entries() if entry.key == name]
            if not found:
                raise UserError(f"there is no {address}")
            fetch(location, found, target)
    return target.path(name)
