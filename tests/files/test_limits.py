"""Decompression bombs are rejected: fastmlp/files/limits.py."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from support.data import message

from fastmlp.errors import ConfigError, DataError
from fastmlp.experiments.folder import MAX_RESULT, read_data, read_result
from fastmlp.files import MAX_JSON, read_json
from fastmlp.files.limits import GIB, MAX_RATIO, check_claim, decompression_limit, largest, open_unpacked

MIB = 1 / 1024  # in GiB


def content(path: Path) -> bytes:
    with open_unpacked(path) as stream:
        return stream.read()


def test_a_declared_size_is_rejected_if_it_exceeds_both_limits() -> None:
    check_claim("a", GIB, 1)
    check_claim("a", 100 * GIB, 2 * GIB)
    text = message(DataError, check_claim, "a", GIB + 1, GIB // MAX_RATIO)
    assert text.startswith("a: the file has 21,474,836 bytes, but declares 1.1 GiB of data, more than 50 times its size; ")
    with pytest.raises(DataError) as caught:
        check_claim("a", GIB + 1, 0)
    assert caught.value.settings == ("max_decompressed",)


def test_the_limit_is_that_of_the_context() -> None:
    assert largest(1) == GIB
    with decompression_limit(2.5):
        assert largest(1) == 2.5 * GIB
        with decompression_limit(None):
            assert largest(1) == 2.5 * GIB
        with pytest.raises(KeyError), decompression_limit(MIB):
            assert largest(1) == 1 << 20
            raise KeyError
        assert largest(1) == 2.5 * GIB
    assert largest(1) == GIB


@pytest.mark.parametrize("limit", [0, -1.0, float("nan"), float("inf"), "2", True])
def test_limits_that_are_no_positive_number_are_refused(limit: object) -> None:
    def enter() -> None:
        with decompression_limit(limit):  # type: ignore[arg-type]
            pass

    assert "max_decompressed must be a positive number of GiB" in message(ConfigError, enter)


def test_text_is_read_unchanged_and_gzip_data_are_decompressed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"plain")
    (tmp_path / "b").write_bytes(gzip.compress(b"packed" * 50_000) + gzip.compress(b" twice"))
    assert content(tmp_path / "a") == b"plain"
    assert content(tmp_path / "b") == b"packed" * 50_000 + b" twice"


def test_a_stream_ends_when_it_exceeds_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "zeros.gz"
    path.write_bytes(gzip.compress(bytes(8 << 20)))
    with decompression_limit(MIB), open_unpacked(path) as stream:
        assert len(stream.read(1 << 19)) == 1 << 19
        with pytest.raises(DataError, match="more than 50 times its size"):
            stream.read()
    assert len(content(path)) == 8 << 20


@pytest.mark.parametrize("cut", [1, 8, 12, 40])
def test_damaged_gzip_data_are_named(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(bytes(range(256)) * 100)[:-cut])
    assert message(DataError, content, path).startswith(f"{path}: damaged gzip file (")


def test_the_size_of_json_files_is_limited(tmp_path: Path) -> None:
    """The decoded values take several times the memory of the file."""
    path, text = tmp_path / "data.json", b'{"format_version": 1}'
    path.write_bytes(text.ljust(MAX_JSON))
    assert read_json(path) == {"format_version": 1}
    path.write_bytes(text.ljust(MAX_JSON + 1))
    problem = f"cannot read {path}: larger than {MAX_JSON:,} bytes, the maximum for this kind of file; check the path"
    assert message(DataError, read_json, path) == message(DataError, read_data, tmp_path) == problem
    assert read_result(path) == {"format_version": 1}
    path.write_bytes(text.ljust(MAX_RESULT + 1))
    assert message(DataError, read_result, path).startswith(f"cannot read {path}: larger than {MAX_RESULT:,} bytes")
