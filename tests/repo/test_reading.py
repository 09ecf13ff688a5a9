"""Only fastmlp/files/ finds and opens files that are read; see files/reading.py for the reason."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fastmlp

PACKAGE = Path(fastmlp.__file__).parent
# Methods of paths, and functions of os, os.path, glob and io, that find or open files.
NAMES = frozenset(
    {
        "exists",
        "is_file",
        "is_dir",
        "stat",
        "lstat",
        "iterdir",
        "glob",
        "rglob",
        "iglob",
        "walk",
        "fwalk",
        "resolve",
        "samefile",
    }
    | {"open", "read_bytes", "read_text", "listdir", "scandir", "isfile", "isdir", "islink", "getsize", "getmtime", "realpath"}
    | {"lexists", "readlink", "fromfile", "loadtxt", "genfromtxt"}
)
# Engines and the benchmark only read their own sources, and files of the operating system.
SKIPPED = ("files/", "engines/", "bench/machine.py")
ALLOWED = {
    "commands/common/console.py: os.open(os.devnull, os.O_WRONLY)": "not read",
    "commands/doctor.py: quota.read_text()": "a file of the operating system",
    "data/features.py: path.open('r+b' if exists(path) else 'w+b')": "a file of features that fastmlp itself is writing",
    "data/images/inputs.py: glob.glob(pattern, recursive=True)": "a folder that cannot be read has no matches",
    "data/named.py: np.loadtxt(DIGITS, np.uint8, delimiter=',')": "part of the package",
    "data/readers/arrays.py: archive.zip.open(member)": "a member of an open archive",
    "data/readers/images.py: os.walk(folder, onerror=refuse)": "inside a guard",
    "data/readers/images.py: Image.open(stream, formats=FORMATS)": "an open file",
    "experiments/folder.py: os.path.lexists(one)": "the probe of a symbolic link, which raises no errors",
}


def calls(name: str, text: str) -> list[str]:
    """Return the calls in source code that find or open files, as "file: call"."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            function = node.func
            called = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
            is_probe = called in NAMES if isinstance(function, ast.Attribute) else called == "open"
            found += [f"{name}: {ast.unparse(node)}"] if is_probe else []
    return found


def test_only_files_finds_and_opens_files() -> None:
    paths = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
    found = [
        call for name, path in paths.items() if not name.startswith(SKIPPED) for call in calls(name, path.read_text("utf-8"))
    ]
    assert {*found} == {*ALLOWED}


@pytest.mark.parametrize(
    "planted",
    [
        "open(path)",
        "path.open('rb')",
        "Path(name).exists()",
        "(folder / 'x').is_file()",
        "folder.parent.is_dir()",
        "[one for one in folder.glob('*.npy')]",
        "os.stat(path)",
        "os.path.isfile(path)",
        "path.read_text()",
        "path.resolve()",
        "np.fromfile(path)",
        "gzip.open(path)",
    ],
)
def test_a_planted_probe_is_found(planted: str) -> None:
    assert len(calls("planted", planted)) == 1


@pytest.mark.parametrize("allowed", ["exists(path)", "is_file(path)", "open_file(path)", "read_bytes(path)", "x.opened"])
def test_other_calls_are_allowed(allowed: str) -> None:
    assert calls("allowed", allowed) == []
