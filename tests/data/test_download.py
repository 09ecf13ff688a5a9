"""Tests of the data sets that are loaded by name, with the published files (if present) and with local download servers."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import os
import re
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from support.data import idx, message

from fastmlp.data import download
from fastmlp.data.download import DataEntry, DataFile, _part_file, data_folder
from fastmlp.data.load import load_data
from fastmlp.data.named import DATASETS, fetch_data, list_data, verify_data
from fastmlp.errors import DataError, UnavailableError
from fastmlp.files import file_sha256
from fastmlp.files.locks import held, remove_unfinished, sweep, unfinished


def test_the_data_folder_is_argument_then_environment_then_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTMLP_DATA", str(tmp_path))
    assert data_folder("given") == Path("given") and data_folder() == tmp_path
    for unset in (lambda: monkeypatch.setenv("FASTMLP_DATA", ""), lambda: monkeypatch.delenv("FASTMLP_DATA")):
        unset()
        assert data_folder().parts[-2:] == ("fastmlp", "data")
    assert data_folder("~/x") == Path.home() / "x"


@pytest.mark.data
@pytest.mark.parametrize("name", ["fashion-mnist", "mnist"])
def test_the_published_files_load_and_match_their_sha256(name, tmp_path):
    if "FASTMLP_DATA" not in os.environ or list_data()[list(DATASETS).index(name)].state != "present":
        pytest.skip(f"{name} is not in FASTMLP_DATA")
    assert {row.status for row in verify_data(name)} == {"ok"}
    real = load_data(name)
    assert real.x.shape == (60000, 784) and real.x.dtype == np.uint8 and real.image_shape == (28, 28, 1)
    assert real.x_test is not None and real.x_test.shape == (10000, 784)
    entry = DATASETS[name]
    for file in entry.files[2:]:  # decompressed copies have other SHA-256 hashes
        content = gzip.decompress((data_folder() / entry.folder / file.name).read_bytes())
        plain = tmp_path / entry.folder / file.name[:-3]
        plain.parent.mkdir(parents=True, exist_ok=True)
        plain.write_bytes(content)
    assert [row.status for row in verify_data(name, tmp_path)] == ["missing", "missing", "ok", "ok"]


# --- downloads from local mirrors ---


IMAGES = np.arange(48, dtype=np.uint8).reshape(4, 3, 4)
ARRAYS = {
    "train-images": IMAGES,
    "train-labels": IMAGES[:, 0, 0] // 12,
    "test-images": IMAGES[:1],
    "test-labels": IMAGES[0, 0, :1],
}
CONTENT = {name: idx(np.ascontiguousarray(array)) for name, array in ARRAYS.items()}
PACKED = {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in CONTENT.items()}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Handler(http.server.SimpleHTTPRequestHandler):
    """Request handler that serves a folder; responses under /cut are shorter than their Content-Length."""

    def log_message(self, *arguments) -> None:
        pass

    def do_GET(self) -> None:
        if not self.path.startswith("/cut"):
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"only this")
        return None


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Yield the address of a server with the paths /good, /damaged (damaged files) and /cut (truncated responses)."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("FASTMLP_OFFLINE", raising=False)
    root = tmp_path / "www"
    for folder, tail in (("good", b""), ("damaged", b"!")):
        (root / folder).mkdir(parents=True)
        for name, content in PACKED.items():
            (root / folder / name).write_bytes(content + tail)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(root))) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture
def tiny(monkeypatch):
    """Return a function that registers the data set "tiny" with the given mirrors."""

    def register(*mirrors: str) -> None:
        pairs = zip(PACKED.items(), CONTENT.values(), strict=True)
        files = tuple(DataFile(name, sha256(packed), sha256(plain)) for (name, packed), plain in pairs)
        monkeypatch.setitem(DATASETS, "tiny", DataEntry("for tests", tuple("abcd"), "Tiny/raw", mirrors, files))

    return register


@pytest.mark.parametrize("first", ["nothing-here", "damaged", "cut", "closed"])
def test_the_next_mirror_is_used_if_the_first_fails(server, tiny, tmp_path, first, capfd):
    tiny("http://127.0.0.1:9/" if first == "closed" else f"{server}/{first}/", f"{server}/good/")
    loaded = load_data("tiny", tmp_path / "data")
    assert loaded.x.tolist() == IMAGES.reshape(4, 12).tolist() and loaded.y.tolist() == [0, 1, 2, 3]
    assert loaded.x_test is not None and loaded.image_shape == (3, 4, 1)
    raw = tmp_path / "data" / "Tiny" / "raw"
    assert {path.name: path.read_bytes() for path in raw.iterdir()} == PACKED
    assert capfd.readouterr() == ("", "")


def test_if_all_mirrors_fail_they_are_listed_and_no_file_is_left(server, tiny, tmp_path):
    tiny(f"{server}/nothing-here/", f"{server}/damaged/", f"{server}/cut/", "http://127.0.0.1:9/")
    text = message(UnavailableError, load_data, "tiny", tmp_path / "data")
    assert "nothing-here/train-images.gz (HTTP 404)" in text and "/cut/train-images.gz (" in text
    assert "damaged/train-images.gz (wrong SHA-256)" in text and ":9/train-images.gz (" in text
    raw = tmp_path / "data" / "Tiny" / "raw"
    assert f"copy the files to {raw}" in text and "FASTMLP_DATA" in text
    assert list(raw.iterdir()) == []


def test_a_download_removes_what_killed_downloads_left(server, tiny, tmp_path):
    tiny(f"{server}/good/")
    raw = tmp_path / "Tiny" / "raw"
    raw.mkdir(parents=True)
    left, other = raw / ".train-images.gz.0123abcd.part", raw / ".others.gz.0123abcd.part"
    left.touch()
    other.touch()
    fetch_data("tiny", tmp_path)
    assert {path.name for path in raw.iterdir()} == {*PACKED, other.name}


def test_a_running_download_is_kept(server, tiny, tmp_path, monkeypatch):
    tiny(f"{server}/good/")
    raw = tmp_path / "Tiny" / "raw"
    raw.mkdir(parents=True)

    def swept(path):  # as by another process that starts the same download
        sweep(raw, re.compile(r".*\.part"))
        return file_sha256(path)

    monkeypatch.setattr(download, "file_sha256", swept)
    with held(raw / ".train-images.gz.0123abcd.part"):  # as in another process
        fetch_data("tiny", tmp_path)
        assert {path.name for path in raw.iterdir()} == {*PACKED, ".train-images.gz.0123abcd.part"}
    assert all((raw / name).read_bytes() == content for name, content in PACKED.items())


def test_before_the_process_ends_the_temporary_file_of_a_download_is_removed(tmp_path):
    with _part_file(tmp_path, "a.gz") as part:
        part.write_bytes(b"the first bytes")
        remove_unfinished()
        assert list(tmp_path.iterdir()) == []
    assert unfinished == set()


def test_offline_forbids_downloads_but_not_existing_files(server, tiny, tmp_path, monkeypatch):
    tiny(f"{server}/good/")
    monkeypatch.setenv("FASTMLP_OFFLINE", "1")
    text = message(UnavailableError, load_data, "tiny", tmp_path)
    assert "train-images.gz is missing or damaged, and FASTMLP_OFFLINE forbids" in text and "FASTMLP_DATA" in text
    assert not (tmp_path / "Tiny").exists()
    monkeypatch.setenv("FASTMLP_OFFLINE", "0")
    load_data("tiny", tmp_path)
    monkeypatch.setenv("FASTMLP_OFFLINE", "1")
    load_data("tiny", tmp_path)


def test_list_fetch_and_verify(server, tiny, tmp_path):
    tiny(f"{server}/good/")
    raw = tmp_path / "Tiny" / "raw"
    assert list_data(tmp_path)[-1] == ("tiny", "for tests", "missing", str(raw))
    assert {row.status for row in verify_data("tiny", tmp_path)} == {"missing"}
    rows = fetch_data("tiny", tmp_path)
    assert [row.status for row in rows] == ["ok"] * 4 and all(row.found == row.expected for row in rows)
    assert list_data(tmp_path)[-1].state == "present"
    (raw / "test-labels.gz").unlink()
    assert list_data(tmp_path)[-1].state == "incomplete"
    (raw / "train-labels.gz").write_bytes(PACKED["train-labels.gz"][:-1])
    assert [row.status for row in verify_data("tiny", tmp_path)] == ["ok", "damaged", "ok", "missing"]
    assert "damaged gzip" in message(DataError, load_data, "tiny", tmp_path)
    assert [row.status for row in fetch_data("tiny", tmp_path)] == ["ok"] * 4


def test_unpacked_files_take_precedence_and_are_never_replaced(server, tiny, tmp_path):
    tiny(f"{server}/good/")
    fetch_data("tiny", tmp_path)
    plain = tmp_path / "Tiny" / "raw" / "train-labels"
    plain.write_bytes(CONTENT["train-labels"])
    rows = verify_data("tiny", tmp_path)
    assert [Path(row.file).name for row in rows][1:3] == ["train-labels", "train-labels.gz"]
    assert {row.status for row in rows} == {"ok"}
    plain.write_bytes(idx(np.array([3, 3, 3, 3], np.uint8)))
    assert load_data("tiny", tmp_path).y.tolist() == [3, 3, 3, 3]
    assert verify_data("tiny", tmp_path)[1].status == "damaged"
    assert f"{plain}: damaged" in message(DataError, fetch_data, "tiny", tmp_path)
    assert plain.exists()


@pytest.mark.parametrize(
    ("name", "array", "expected"),
    [
        ("train-labels", np.array([0, 1, 2, 4], np.uint8), "train-labels: row 3: label 4 is not an integer"),
        ("train-labels", np.array([0, 1, 2], np.uint8), "train-labels has 3; give one target per row"),
        ("test-images", IMAGES[:1, :2], "test-images has rows of shape (2, 4, 1)"),
    ],
)
def test_inconsistent_idx_files_are_rejected(server, tiny, tmp_path, name, array, expected):
    tiny(f"{server}/good/")
    fetch_data("tiny", tmp_path)
    load_data("tiny", tmp_path)
    (tmp_path / "Tiny" / "raw" / name).write_bytes(idx(array))
    assert expected in message(DataError, load_data, "tiny", tmp_path)


def test_a_folder_that_cannot_be_written_is_reported(server, tiny, tmp_path):
    tiny(f"{server}/good/")
    (tmp_path / "file").write_text("")
    text = message(DataError, load_data, "tiny", tmp_path / "file")
    assert f"{tmp_path / 'file' / 'Tiny' / 'raw'}: cannot be written" in text


def test_progress_shows_a_bar_on_stderr(server, tiny, tmp_path, capfd):
    tiny(f"{server}/damaged/", f"{server}/good/")
    fetch_data("tiny", tmp_path, progress=True)
    shown = capfd.readouterr()
    assert shown.out == "" and all(name in shown.err for name in PACKED)
    assert re.search(rf"\b{len(PACKED['train-images.gz'])}\b", shown.err)  # the size of the file in bytes


def test_the_message_for_an_unknown_name_suggests_the_nearest():
    for call in (fetch_data, verify_data):
        assert "did you mean 'mnist'?" in message(DataError, call, "mnits")
    assert fetch_data("digits") == verify_data("digits") == []
