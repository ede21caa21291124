"""A row is compressed to the very bytes that HDF5 itself would store."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from data_pipeline.shards.reader import AUDIO, MEL_SPEC, create_dataset
from data_pipeline.shards.row_compression import EncodedRow, RowEncoder, _to_float16
from tests.helpers import make_rows, write

SHAPES = {AUDIO: (2, 176400), MEL_SPEC: (2, 128, 401)}


def decoded(row: EncodedRow) -> dict[str, NDArray[np.float16]]:
    """What HDF5 reads back from a row's chunks."""
    arrays = {}
    with h5py.File("decoded-in-memory", "w", driver="core", backing_store=False) as file:
        for name, chunk in ((AUDIO, row.audio), (MEL_SPEC, row.mel_spec)):
            dataset = create_dataset(file, name, 1, SHAPES[name])
            dataset.id.write_direct_chunk((0,) * dataset.ndim, chunk)
            arrays[name] = dataset[0]
    return arrays


def silence_and_noise() -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Two rows that compress well and badly: (2, 2, 176400), (2, 2, 128, 401) and (2, 92)."""
    rows = make_rows(3)
    audio, mel_spec = rows.audio.astype(np.float32), rows.mel_spec.astype(np.float32)
    audio[0], mel_spec[0] = 0.0, -80.0
    return audio, mel_spec, rows.param_array


def test_chunks_are_what_hdf5_stores(tmp_path: Path) -> None:
    rows = make_rows(1, rows=3)
    rows.audio[1, :, 1000:] = 0  # Compresses to another size than its neighbours.
    encoder = RowEncoder()
    with h5py.File(write(tmp_path / "shard.h5", rows)) as file:
        for index in range(3):
            row = encoder.encode(40 + index, 2, rows.audio[index], rows.mel_spec[index], rows.param_array[index])
            assert file[AUDIO].id.read_direct_chunk((index, 0, 0)) == (0, row.audio)
            assert file[MEL_SPEC].id.read_direct_chunk((index, 0, 0, 0)) == (0, row.mel_spec)
            assert row.params == file["param_array"][index].tobytes()
            assert (row.index, row.attempt) == (40 + index, 2)


def test_rounding_is_numpys() -> None:
    """Of every float16, its neighbours in float32, and the ties between them, with either sign."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    ties = (halves[:-1] + halves[1:]) / 2
    exact = np.concatenate([halves, ties, -ties, np.float32([1e-30, -1e-30, 65519.9, 65520, 1e30, -1e30])])
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.concatenate([exact, *(np.nextafter(exact, np.float32(end)) for end in (-np.inf, np.inf))])
        rounded, expected = _to_float16(values), values.astype(np.float16)
    number = ~np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(rounded), ~number)
    np.testing.assert_array_equal(rounded[number].view(np.uint16), expected[number].view(np.uint16))


def test_float16_is_kept_bit_for_bit() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16)
    np.testing.assert_array_equal(_to_float16(halves.view(np.float16)).view(np.uint16), halves)


def test_chunks_hold_the_row_rounded_to_float16() -> None:
    audio, mel_spec, params = silence_and_noise()
    audio += np.float32(1e-5)
    encoder = RowEncoder()
    for index in range(2):
        row = encoder.encode(index, 0, audio[index], mel_spec[index], params[index])
        np.testing.assert_array_equal(decoded(row)[AUDIO], audio[index].astype(np.float16))
        np.testing.assert_array_equal(decoded(row)[MEL_SPEC], mel_spec[index].astype(np.float16))
        np.testing.assert_array_equal(np.frombuffer(row.params, "<f4"), params[index])


def test_row_does_not_depend_on_those_before() -> None:
    audio, mel_spec, params = silence_and_noise()
    encoder = RowEncoder()
    alone = [RowEncoder().encode(n, 0, audio[n], mel_spec[n], params[n]) for n in range(2)]
    assert len(alone[0].audio) < len(alone[1].audio) // 10
    for index in (0, 1, 0, 0, 1, 1):
        assert encoder.encode(index, 0, audio[index], mel_spec[index], params[index]) == alone[index]


def test_encoders_live_side_by_side() -> None:
    audio, mel_spec, params = silence_and_noise()
    first, second = RowEncoder(), RowEncoder()
    row = first.encode(0, 0, audio[1], mel_spec[1], params[1])
    second.encode(0, 0, audio[0], mel_spec[0], params[0])
    assert first.encode(0, 0, audio[1], mel_spec[1], params[1]) == row


def test_no_file_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    audio, mel_spec, params = silence_and_noise()
    encoder = RowEncoder()
    encoder.encode(0, 0, audio[1], mel_spec[1], params[1])
    del encoder
    assert not list(tmp_path.iterdir())


def test_memory_stays_flat() -> None:
    """Chunks of ever other sizes must find room in what the file in memory already has."""
    audio, mel_spec, params = silence_and_noise()
    encoder = RowEncoder()
    sizes = []
    for count in range(60):
        audio[0, :, : 3000 * (count * 37 % 59)] = audio[1, :, : 3000 * (count * 37 % 59)]
        encoder.encode(count, 0, audio[0], mel_spec[1], params[0])
        audio[0] = 0.0
        sizes.append(encoder._file.id.get_filesize())
    assert max(sizes) < 3 << 20


@pytest.mark.parametrize("name", [AUDIO, MEL_SPEC])
def test_wrong_shape_is_an_error(name: str) -> None:
    arrays = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    arrays[name] = arrays[name][..., :-1]
    with pytest.raises((TypeError, ValueError)):
        RowEncoder().encode(0, 0, arrays[AUDIO], arrays[MEL_SPEC], np.zeros(5, np.float32))


def test_params_are_little_endian_float32_whatever_they_come_as() -> None:
    audio, mel_spec, params = silence_and_noise()
    row = RowEncoder().encode(0, 0, audio[0], mel_spec[0], params[0].astype(">f4"))
    assert row.params == params[0].tobytes()
