"""What files of compiled kernels are named by, and which folders are taken; real processes are in test_cpu_cache.py."""

from __future__ import annotations

import ast
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import fastmlp
from fastmlp import cpu_cache, cuda_compile
from fastmlp.kernel_files import UnsafeFolder, cache_folder, check_private

PACKAGE = Path(fastmlp.__file__).parent

# Modules that the kernels' sources import, but of which nothing is compiled: exceptions, and the description of networks,
# which reaches the kernels as numbers in arrays.
NOT_COMPILED = {"errors.py", "network.py"}


def imports_of(file: Path) -> set[str]:
    """File names of the fastmlp modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names: list[Any] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found |= {f"{name.split('.')[1]}.py" for name in names if name and name.startswith("fastmlp.")}
    return {name for name in found if (file.parent / name).exists()}


# What is listed, by the file from which all that takes part is reached.
LISTED = {"cpu_kernels.py": cpu_cache.SOURCES, "cuda_compile.py": cuda_compile.SOURCES}


def missing_sources(root: str, listed: tuple[str, ...], folder: Path = PACKAGE) -> set[str]:
    """What takes part in the kernels and is not listed; a listed file that does not exist is an error."""
    reached, waiting = set(), {root}
    while waiting:
        name = waiting.pop()
        reached.add(name)
        if name not in NOT_COMPILED:
            waiting |= imports_of(folder / name) - reached
    return reached - NOT_COMPILED - set(listed)


@pytest.mark.parametrize("root", LISTED)
def test_every_source_of_the_kernels_is_in_the_key(root: str) -> None:
    listed = LISTED[root]
    assert missing_sources(root, listed) == set()
    assert all((PACKAGE / name).exists() for name in listed)
    assert len(set(listed)) == len(listed)


@pytest.mark.parametrize(("root", "left_out"), [(root, name) for root, names in LISTED.items() for name in names])
def test_the_check_of_sources_sees_one_that_is_left_out(root: str, left_out: str) -> None:
    assert missing_sources(root, tuple(name for name in LISTED[root] if name != left_out)) == {left_out}


@pytest.mark.parametrize("root", LISTED)
def test_the_check_of_sources_follows_a_new_import(root: str, tmp_path: Path) -> None:
    listed = LISTED[root]
    for name in {*listed, *NOT_COMPILED}:
        shutil.copy(PACKAGE / name, tmp_path)
    (tmp_path / "cpu_new.py").write_text("ONE = 1\n")
    for line in ("from fastmlp.cpu_new import ONE", "from fastmlp import cpu_new", "import fastmlp.cpu_new"):
        (tmp_path / "philox.py").write_text((PACKAGE / "philox.py").read_text() + f"\n{line}\n")
        assert missing_sources(root, listed, tmp_path) == {"cpu_new.py"}, line


# ------------------------------------------------------------------------------------------------ folders


def test_the_folder_is_named_by_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FASTMLP_CACHE_DIR", str(tmp_path / "named"))
    assert cache_folder() == tmp_path / "named"
    for nothing in ("", None):
        monkeypatch.setenv("HOME", str(tmp_path))
        if nothing is None:
            monkeypatch.delenv("FASTMLP_CACHE_DIR")
        else:
            monkeypatch.setenv("FASTMLP_CACHE_DIR", nothing)
        assert cache_folder().is_absolute()
        assert cache_folder().parts[-2:] == ("fastmlp", "kernels")
    if sys.platform.startswith("linux"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert cache_folder() == tmp_path / "xdg" / "fastmlp" / "kernels"


def test_which_folders_are_private(tmp_path: Path) -> None:
    folder = tmp_path / "kernels"
    folder.mkdir()
    for mode in (0o700, 0o500, 0o755, 0o711):
        folder.chmod(mode)
        check_private(folder)
    for mode in (0o720, 0o702, 0o777, 0o1777):
        folder.chmod(mode)
        with pytest.raises(UnsafeFolder, match="may be written by others"):
            check_private(folder)
    folder.chmod(0o700)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(folder)
    for other in (tmp_path / "file", tmp_path / "link"):
        with pytest.raises(UnsafeFolder, match="not a folder"):
            check_private(other)
