"""Tests of the key of the kernel cache, and of the path of its folder."""

from __future__ import annotations

import ast
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import fastmlp
from fastmlp.engines.cpu.codegen import cache
from fastmlp.engines.cuda import compiler
from fastmlp.engines.kernel_cache import cache_folder, sources_hash, sources_of

PACKAGE = Path(fastmlp.__file__).parent

# Modules that the kernels' sources import but that contain no compiled code: exceptions, lazy imports, texts, the check of
# NUMBA_DISABLE_JIT and `__init__.py`.
NOT_COMPILED = {"errors.py", "_lazy.py", "_summary.py", "engines/jit.py"} | {
    f"{folder}__init__.py" for folder in ("", "engines/", "engines/cpu/")
}


def imports_of(name: str, package: Path) -> set[str]:
    """Return the files of fastmlp that a file imports anywhere, including `__init__.py` of their parent packages."""
    found = set()
    for node in ast.walk(ast.parse((package / name).read_text())):
        names: list[Any] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for full in names:
            parts = str(full).split(".")
            for length in range(1, len(parts) + 1) if parts[0] == "fastmlp" else ():
                place = "/".join(parts[1:length])
                found |= {place + ".py", f"{place}/__init__.py".removeprefix("/")}
    return {one for one in found if (package / one).is_file()}


# Hashed sources, by the file that imports all of them, directly or indirectly.
LISTED = {"engines/cpu/kernels/programs.py": cache.SOURCES, "engines/cuda/compiler.py": compiler.SOURCES}


def missing_sources(root: str, listed: tuple[str, ...], package: Path = PACKAGE) -> set[str]:
    """Return the source files that affect kernels but are not hashed."""
    reached, waiting = set(), {root}
    while waiting:
        name = waiting.pop()
        reached.add(name)
        if name not in NOT_COMPILED:
            waiting |= imports_of(name, package) - reached
    return reached - NOT_COMPILED - set(sources_of(listed, package))


@pytest.mark.parametrize("root", LISTED)
def test_every_source_of_the_kernels_is_in_the_key(root: str) -> None:
    assert missing_sources(root, LISTED[root]) == set()
    assert root in sources_of(LISTED[root])


@pytest.mark.parametrize(("root", "left_out"), [(root, name) for root, names in LISTED.items() for name in names])
def test_the_check_of_sources_sees_one_that_is_left_out(root: str, left_out: str) -> None:
    missing = missing_sources(root, tuple(name for name in LISTED[root] if name != left_out))
    assert missing
    assert missing <= set(sources_of([left_out]))


@pytest.mark.parametrize("root", LISTED)
def test_the_check_of_sources_follows_a_new_import(root: str, tmp_path: Path) -> None:
    for name in {*sources_of(LISTED[root]), *NOT_COMPILED}:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PACKAGE / name, tmp_path / name)
    (tmp_path / "engines" / "new.py").write_text("ONE = 1\n")
    for line in ("from fastmlp.engines.new import ONE", "from fastmlp.engines import new", "import fastmlp.engines.new"):
        (tmp_path / "nn" / "philox.py").write_text((PACKAGE / "nn" / "philox.py").read_text() + f"\n{line}\n")
        assert missing_sources(root, LISTED[root], tmp_path) == {"engines/new.py"}, line


def test_a_new_file_in_a_hashed_folder_changes_the_key_without_being_listed(tmp_path: Path) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "one.py").write_text("ONE = 1\n")
    (tmp_path / "plan.py").write_text("")
    places = ("kernels", "plan.py")
    seen = [sources_hash(places, "", tmp_path)]
    for change in (
        lambda: (tmp_path / "kernels" / "two.py").write_text("TWO = 2\n"),
        lambda: (tmp_path / "kernels" / "two.py").rename(tmp_path / "kernels" / "three.py"),
        lambda: (tmp_path / "plan.py").write_text("A = 1\n"),
        (tmp_path / "kernels" / "three.py").unlink,
    ):
        change()
        seen.append(sources_hash(places, "", tmp_path))
    assert len(set(seen)) == len(seen)
    assert sources_hash(places, "other versions", tmp_path) not in seen
    with pytest.raises(FileNotFoundError):
        sources_hash(("kernel",), "", tmp_path)


# ------------------------------------------------------------------------------------------------ path


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
