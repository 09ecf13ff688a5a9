"""Tests of the folder and the files of the kernel cache: owners, permissions, links, exchanged folders, left-over files."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from support.processes import check_in_a_forked_child

from fastmlp.engines import kernel_cache
from fastmlp.engines.kernel_cache import (
    DIGEST_BYTES,
    UnsafeFolder,
    can_keep,
    file_sizes,
    private_folder,
    read_entry,
    remove_left_over,
    write_entry,
)


@pytest.fixture(params=["descriptor", "path"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test with the descriptor of the folder, and with its path as on Windows."""
    monkeypatch.setattr(kernel_cache, "BY_DESCRIPTOR", request.param == "descriptor")
    return str(request.param)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ------------------------------------------------------------------------------------------------ the folder


def test_an_entry_is_private(way: str, tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there" / "yet"
    before = os.umask(0)
    try:
        write_entry(folder / "a.kernel", b"code")
    finally:
        os.umask(before)
    assert read_entry(folder / "a.kernel") == b"code"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "a.kernel").stat().st_mode) == 0o600
    assert names(folder) == ["a.kernel"]
    assert file_sizes(folder) == [DIGEST_BYTES + 4]
    assert can_keep(folder)


def test_which_folders_are_private(way: str, tmp_path: Path) -> None:
    folder = tmp_path / "kernels"
    folder.mkdir()
    for mode in (0o700, 0o500, 0o755, 0o711):
        folder.chmod(mode)
        with private_folder(folder):
            pass
        assert stat.S_IMODE(folder.stat().st_mode) == mode
    for mode in (0o720, 0o702, 0o770, 0o777, 0o1777):
        folder.chmod(mode)
        assert not can_keep(folder)
        with pytest.raises(UnsafeFolder, match="is writable by other users"), private_folder(folder):
            pass


@pytest.mark.parametrize("other", ["file", "link", "dangling link"])
def test_other_files_in_place_of_the_folder_are_refused_with_one_warning(other: str, way: str, tmp_path: Path) -> None:
    folder, named = tmp_path / "kernels", tmp_path / other
    if other == "file":
        named.touch()
    else:
        named.symlink_to(folder)
    if other == "link":
        write_entry(folder / "a.kernel", b"code")
    assert not can_keep(named)
    with pytest.warns(RuntimeWarning, match="not cached on disk") as caught:
        assert read_entry(named / "a.kernel") is None
        write_entry(named / "a.kernel", b"other")
    assert len(caught) == 1
    assert str(named) in str(caught[0].message)
    assert ("symbolic link" in str(caught[0].message)) == (other != "file")
    if other == "link":
        assert read_entry(folder / "a.kernel") == b"code"


def test_a_link_that_appears_before_the_folder_is_opened_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_entry(tmp_path / "kernels" / "a.kernel", b"code")
    (tmp_path / "link").symlink_to(tmp_path / "kernels")
    monkeypatch.setattr(Path, "is_symlink", lambda path: False)
    with pytest.warns(RuntimeWarning, match="not cached on disk"):
        assert read_entry(tmp_path / "link" / "a.kernel") is None


def test_folders_above_the_cache_may_be_links(way: str, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "home").symlink_to(tmp_path / "real")
    write_entry(tmp_path / "home" / "fastmlp" / "kernels" / "a.kernel", b"code")
    assert read_entry(tmp_path / "home" / "fastmlp" / "kernels" / "a.kernel") == b"code"
    assert read_entry(tmp_path / "real" / "fastmlp" / "kernels" / "a.kernel") == b"code"


def test_a_relative_path(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_entry(Path("kernels") / "a.kernel", b"code")
    assert read_entry(Path("kernels") / "a.kernel") == b"code"
    assert names(tmp_path) == ["kernels"]


@pytest.fixture
def exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Exchange the folder `kernels` with the folder `other` as soon as its owner has been checked."""
    folder, other = tmp_path / "kernels", tmp_path / "other"
    write_entry(folder / "a.kernel", b"code")
    write_entry(other / "a.kernel", b"other code")
    check = kernel_cache.unsafe_owner

    def check_then_exchange(found: os.stat_result) -> str:
        problem = check(found)
        if other.exists():
            folder.rename(tmp_path / "checked")
            other.rename(folder)
        return problem

    monkeypatch.setattr(kernel_cache, "unsafe_owner", check_then_exchange)
    return folder


def test_an_exchanged_folder_is_not_read(exchanged: Path) -> None:
    assert read_entry(exchanged / "a.kernel") == b"code"


def test_an_exchanged_folder_is_not_written(exchanged: Path, tmp_path: Path) -> None:
    (tmp_path / "other" / "tmp_x.tmp").touch()
    write_entry(exchanged / "b.kernel", b"code of b")
    assert names(tmp_path / "checked") == ["a.kernel", "b.kernel"]
    assert names(exchanged) == ["a.kernel", "tmp_x.tmp"]


def test_in_an_exchanged_folder_nothing_is_deleted(exchanged: Path, tmp_path: Path) -> None:
    (tmp_path / "kernels" / "a.kernel").write_bytes(b"damaged")
    assert read_entry(exchanged / "a.kernel") is None
    assert names(tmp_path / "checked") == []
    assert names(exchanged) == ["a.kernel"]


def test_without_the_descriptor_the_exchanged_folder_would_be_read(exchanged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_cache, "BY_DESCRIPTOR", False)
    assert read_entry(exchanged / "a.kernel") == b"other code"


# ------------------------------------------------------------------------------------------------ its files


def entry(path: Path) -> None:
    """Write a valid entry."""
    write_entry(path.parent / "valid", b"from another user")
    (path.parent / "valid").rename(path)


def link(path: Path) -> None:
    entry(path.parent / "target")
    path.symlink_to("target")


def hard_link(path: Path) -> None:
    entry(path.parent / "target")
    path.hardlink_to(path.parent / "target")


def writable_by(mode: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        entry(path)
        path.chmod(mode)

    return make


def bound_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


UNSAFE: dict[str, Callable[[Path], None]] = {
    "symbolic link": link,
    "hard link": hard_link,
    "writable by the group": writable_by(0o660),
    "writable by others": writable_by(0o602),
    "FIFO": os.mkfifo,
    "socket": bound_socket,
}


@pytest.mark.parametrize("kind", UNSAFE)
def test_an_unsafe_file_is_deleted(kind: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.chdir(tmp_path)  # the paths of sockets are short
    file = Path("a.kernel")
    UNSAFE[kind](file)
    assert os.path.lexists(file)

    def holds() -> bool:
        return read_entry(tmp_path / file) is None and not os.path.lexists(file)

    check_in_a_forked_child(holds, 20)  # the opening of a FIFO could wait without end
    write_entry(tmp_path / file, b"code")
    assert read_entry(tmp_path / file) == b"code"


def test_an_unsafe_file_is_replaced(way: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    link(tmp_path / "a.kernel")
    target = (tmp_path / "target").read_bytes()
    write_entry(tmp_path / "a.kernel", b"code")
    assert not (tmp_path / "a.kernel").is_symlink()
    assert read_entry(tmp_path / "a.kernel") == b"code"
    assert (tmp_path / "target").read_bytes() == target


def test_a_file_of_another_user_is_deleted(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o700)
    entry(tmp_path / "a.kernel")
    fstat = os.fstat

    def of_another_user(descriptor: int) -> os.stat_result:
        found = fstat(descriptor)
        return os.stat_result([*found[:4], found.st_uid + 1, *found[5:10]]) if stat.S_ISREG(found.st_mode) else found

    monkeypatch.setattr(os, "fstat", of_another_user)
    assert read_entry(tmp_path / "a.kernel") is None
    assert names(tmp_path) == []


def test_a_folder_in_place_of_a_file_is_kept_with_a_warning(way: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "a.kernel").mkdir()
    with pytest.warns(RuntimeWarning, match="not cached on disk"):
        assert read_entry(tmp_path / "a.kernel") is None
    assert names(tmp_path) == ["a.kernel"]


def test_a_file_that_cannot_be_renamed_leaves_nothing(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def replace(*given: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", replace)
    with pytest.warns(RuntimeWarning, match=os.strerror(errno.ENOSPC)):
        write_entry(tmp_path / "kernels" / "a.kernel", b"code")
    assert names(tmp_path / "kernels") == []


# ------------------------------------------------------------------------------------------------ left-over files


def test_writing_an_entry_removes_the_temporary_files_of_killed_processes(tmp_path: Path) -> None:
    folder = tmp_path / "kernels"
    write_entry(folder / "a.kernel", b"a")
    left = [folder / "tmpabcd1234.tmp", folder / "tmp_x.tmp"]
    for path in left:
        path.touch()
    with private_folder(folder) as (_, descriptor):
        remove_left_over(descriptor)
        assert names(folder) == ["a.kernel"]
        left[0].touch()
        write_entry(folder / "b.kernel", b"b")  # the lock is held, as by another process that is writing an entry
        assert left[0].exists()
    write_entry(folder / "c.kernel", b"c")
    assert names(folder) == ["a.kernel", "b.kernel", "c.kernel"]
    assert [read_entry(folder / f"{name}.kernel") for name in "abc"] == [b"a", b"b", b"c"]


@pytest.mark.parametrize("missing", ["locks", "descriptors"])
def test_without_locks_temporary_files_are_kept(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, flags: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    if missing == "locks":
        monkeypatch.setattr(fcntl, "flock", flock)
    else:
        monkeypatch.setattr(kernel_cache, "BY_DESCRIPTOR", False)
    tmp_path.chmod(0o700)
    (tmp_path / "tmp_x.tmp").touch()
    write_entry(tmp_path / "a.kernel", b"a")
    assert names(tmp_path) == ["a.kernel", "tmp_x.tmp"]
    assert read_entry(tmp_path / "a.kernel") == b"a"
