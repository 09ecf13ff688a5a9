"""Untrusted files of PyTorch: only regular files are read, and no file makes its reader allocate far more memory than its size.

Each of these files is rejected with a one-line error message before PyTorch reads it.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fastmlp.cnn import claims, files
from fastmlp.cnn.errors import FileError
from fastmlp.cnn.files import read_file, read_state, read_weights
from support.torch_files import PICKLE, members, saved, with_pickle, zipped

STATE = {"a": torch.arange(300, dtype=torch.float32), "b": [1, 2.5, None, True, "x"], "c": {"d": (1, 2)}}


@pytest.fixture
def torch_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test in which PyTorch reads the file."""
    monkeypatch.setattr(files.torch, "load", lambda *_, **__: pytest.fail("PyTorch reads the file"))


# ------------------------------------------------------------------------------------------------ only regular files


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "fifo.pt")
    return folder / "fifo.pt"


def loop(folder: Path) -> Path:
    (folder / "a.pt").symlink_to("b.pt")
    (folder / "b.pt").symlink_to("a.pt")
    return folder / "a.pt"


PATHS: dict[str, Callable[[Path], Path]] = {
    "fifo": fifo,
    "folder": lambda folder: folder,
    "device": lambda folder: Path("/dev/zero"),
    "loop": loop,
    "long": lambda folder: folder / ("x" * 300),
    "missing": lambda folder: folder / "none.pt",
    "in a file": lambda folder: Path(__file__) / "x",
    "zero byte": lambda folder: folder / "a\0.pt",
    "surrogate": lambda folder: folder / "\ud800.pt",
}


@pytest.mark.parametrize("kind", PATHS)
def test_only_regular_files_are_read(tmp_path: Path, kind: str) -> None:
    with pytest.raises(FileError, match=r"cannot be read \(.+\); check the path$") as caught:
        read_file(PATHS[kind](tmp_path), settings=("weights",))
    assert str(caught.value).isprintable()
    assert caught.value.settings == ("weights",)


def test_a_link_to_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"abc")
    (tmp_path / "b.pt").symlink_to("a.pt")
    assert read_file(tmp_path / "b.pt") == b"abc"


# ------------------------------------------------------------------------------------------------ sizes and contents


@pytest.mark.parametrize("before_1_6", [False, True])
def test_files_of_torch_are_read(before_1_6: bool) -> None:
    found = read_state(saved(STATE, before_1_6=before_1_6), "a.pt")
    assert torch.equal(found.pop("a"), STATE["a"])  # type: ignore[arg-type]
    assert found == {"b": STATE["b"], "c": STATE["c"]}


@pytest.mark.parametrize("before_1_6", [False, True])
def test_pickle_protocols(before_1_6: bool) -> None:
    """Protocol 3 is read without a warning. PyTorch cannot read 4 and 5 with weights_only=True."""
    found = read_state(saved(STATE, before_1_6=before_1_6, protocol=3), "a.pt")
    assert torch.equal(found["a"], STATE["a"])  # type: ignore[arg-type]
    for protocol in (4, 5):
        with pytest.raises(
            FileError, match=rf"^a\.pt: it has pickle protocol {protocol}, but .*; save the weights with"
        ) as caught:
            read_state(saved(STATE, before_1_6=before_1_6, protocol=protocol), "a.pt")
        assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("before_1_6", [False, True])
@pytest.mark.parametrize("protocol", [2, 3])
def test_tensors_with_two_names_are_read(protocol: int, before_1_6: bool) -> None:
    weight = torch.arange(4, dtype=torch.float32)
    tied = torch.nn.Parameter(weight)
    state = {"a": weight, "b": weight, "c": weight[1:], "d": tied, "e": tied}
    found = read_weights(saved(state, before_1_6=before_1_6, protocol=protocol), "a.pt")
    assert {name: value.tolist() for name, value in found.items()} == {name: value.tolist() for name, value in state.items()}


def test_no_message_advises_to_switch_the_protection_off() -> None:
    for bad in (
        b"]K\x01K\x02s",
        b"}K\x01a",
        b"ctorch._utils\n_rebuild_tensor_v2\n)R",
        b"ccollections\nOrderedDict\nK\x01\x85R",
    ):
        with pytest.raises(FileError, match=r"^a\.pt: not a readable PyTorch file \(.+\); use an intact copy") as caught:
            read_state(with_pickle(saved(STATE), lambda _, bad=bad: START + bad + END), "a.pt")  # type: ignore[misc]
        assert "weights_only" not in str(caught.value)


@pytest.mark.usefixtures("torch_reads_nothing")
def test_a_decompression_bomb_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "GIB", 1 << 20)
    contents = members(saved({"a": torch.zeros(1 << 20)}))
    for contained in (contents, contents | {PICKLE: b"N" * (1 << 22)}, contents | {"archive/more": bytes(1 << 22)}):
        bomb = zipped(contained, zipfile.ZIP_DEFLATED)
        assert len(bomb) < 20_000
        with pytest.raises(FileError, match=r"^a\.pt: the file has [\d,]+ bytes, but declares .* 50 times its size; use a"):
            read_state(bomb, "a.pt")


@pytest.mark.usefixtures("torch_reads_nothing")
@pytest.mark.parametrize("before_1_6", [False, True])
def test_a_storage_that_declares_more_than_a_gib_is_refused(before_1_6: bool) -> None:
    short, long = b"M" + struct.pack("<H", 300), b"\x8a\x05" + (1 << 38).to_bytes(5, "little")
    data = saved(STATE, before_1_6=before_1_6)
    bomb = data.replace(short, long) if before_1_6 else with_pickle(data, lambda pickle: pickle.replace(short, long))
    assert bomb != data
    with pytest.raises(FileError, match=r"declares 1,024\.0 GiB"):
        read_state(bomb, "a.pt")


def test_compressed_files_of_a_usual_ratio_are_read() -> None:
    data = zipped(members(saved(STATE)), zipfile.ZIP_DEFLATED)
    assert torch.equal(read_state(data, "a.pt")["a"], STATE["a"])  # type: ignore[arg-type]


START, END = b"\x80\x02}X\x01\x00\x00\x00a", b"s."
PICKLES = {
    "bytearray": b"c__builtin__\nbytearray\nJ\x00\x00\x00\x40\x85R",
    "new storage": b"ctorch.storage\nUntypedStorage\nJ\x00\x00\x00\x40\x85R",
    "new tensor": b"ctorch\nTensor\nJ\x00\x00\x00\x40\x85R",
    "set": b"\x8f",
    "code": b"cposix\nsystem\nX\x04\x00\x00\x00true\x85R",
    "tuple of tuples": b")q\x00" + b"".join(b"h%bh%b\x86q%b" % (bytes([i]), bytes([i]), bytes([i + 1])) for i in range(60)),
    "list of itself": b"]q\x00h\x00a",
    "list twice": b"]q\x00h\x00\x86",
    "unknown memo": b"h\x07",
    "storage without size": b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000tQ",
    "storage of another type": b"(X\x07\x00\x00\x00storageX\x01\x00\x00\x000X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ",
    "negative size": b"(X\x07\x00\x00\x00storagectorch\nByteStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuJ\0\0\0\xfftQ",
    "no tuple": b"X\x07\x00\x00\x00storageQ",
    "unknown operation": b"\xff",
    "call of a tensor": b"K\x01)R",
    "call of a storage": b"ctorch\nFloatStorage\nK\x01\x85R",
    "call of a text": b"X\x1f\x00\x00\x00torch._utils _rebuild_tensor_v2x)R",
    "dict of a call twice": b"ccollections\nOrderedDict\n)Rq\x00h\x00\x86",
    "state of a tensor": b"ctorch._utils\n_rebuild_tensor_v2\n)R}b",
    "nothing to store": b"(q\x00t",
    "too few values": b"(K\x01\x86t",
    "no mark": b"uu",
}


@pytest.mark.usefixtures("torch_reads_nothing")
@pytest.mark.parametrize("kind", PICKLES)
def test_a_pickle_with_other_operations_is_refused(kind: str) -> None:
    for change in (lambda _: START + PICKLES[kind] + END, lambda _: START + PICKLES[kind]):
        with pytest.raises(FileError, match=r"^a\.pt: (contains objects|two entries share|not a readable)") as caught:
            read_state(with_pickle(saved(STATE), change), "a.pt")
        assert str(caught.value).isprintable()


@pytest.mark.usefixtures("torch_reads_nothing")
def test_ambiguous_archives_are_refused() -> None:
    """PyTorch and zipfile would read different members of these files."""
    contents = members(saved(STATE))
    other_case = zipped(contents | {PICKLE.upper(): contents[PICKLE]})
    prefixed = zipped(contents)[:-22] + zipped(contents)  # two lists of members
    commented = zipped(contents) + b"x"
    moved = bytearray(saved(STATE))
    moved[-34:-26] = struct.pack("<Q", 7)  # position of the end record in the zip64 locator
    for data in (other_case, prefixed, commented, bytes(moved)):
        with pytest.raises(FileError, match=r"duplicate or hidden members|not a readable PyTorch file"):
            read_state(data, "a.pt")


@pytest.mark.usefixtures("torch_reads_nothing")
def test_other_archives_are_refused() -> None:
    contents = members(saved(STATE))
    with pytest.raises(FileError, match="a TorchScript program, not a file of weights; save the state dict of the network"):
        read_state(zipped(contents | {"archive/constants.pkl": b""}), "a.pt")
    for data in (zipped({}), zipped({"a": b""}), zipped({"archive/version": b"3"}), saved(STATE)[:-30], b"PK", b""):
        with pytest.raises(FileError, match="not a readable PyTorch file"):
            read_state(data, "a.pt")


# ------------------------------------------------------------------------------------------------ weights of networks

INVALID_WEIGHTS: dict[str, Any] = {
    "number": {"a": 1},
    "key": {1: torch.zeros(1)},
    "nested": {"a": {"b": torch.zeros(1)}},
    "expanded": {"a": torch.zeros(1).expand(1 << 30)},
    "list": [torch.zeros(1)],
    "tensor": torch.zeros(1),
}


@pytest.mark.parametrize("before_1_6", [False, True])
@pytest.mark.parametrize("kind", INVALID_WEIGHTS)
def test_invalid_weights_are_refused(kind: str, before_1_6: bool) -> None:
    with pytest.raises(FileError, match=r"^a\.pt: does not contain (a dict of|the) weights"):
        read_weights(saved(INVALID_WEIGHTS[kind], before_1_6=before_1_6), "a.pt")


def test_attributes_of_a_dict_in_a_file_are_not_used() -> None:
    weights = OrderedDict(a=torch.ones(2))
    vars(weights).update({"_tems": 1, "_eys": 1, "_et": 1})  # replaced by items, keys, get below
    weights._metadata = OrderedDict({"": {"version": 2}, "x": {"version": None}})  # type: ignore[attr-defined]
    data = with_pickle(
        saved(weights), lambda pickle: pickle.replace(b"_tems", b"items").replace(b"_eys", b"keys").replace(b"_et", b"get")
    )
    assert torch.load(io.BytesIO(data), weights_only=True).items == 1
    found = read_weights(data, "a.pt")
    assert [*found] == ["a"]
    assert torch.equal(found["a"], torch.ones(2))
    assert found._metadata == {"": {"version": 2}, "x": {"version": None}}  # type: ignore[attr-defined]
    for versions in ({1: {"version": 2}}, {"": {"version": "2"}}, {"": {"version": [2]}}):
        weights._metadata = versions  # type: ignore[attr-defined]
        with pytest.raises(FileError, match="invalid versions of modules"):
            read_weights(saved(weights), "a.pt")
