"""Static rules for the source code: no file can make fastmlp run code, and only data/download.py opens connections.

tests/repo/test_audited_readers.py checks the same in running processes.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes import ROOT

FILES = [
    *(path for folder in ("fastmlp", "cnn", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))),
    ROOT / "cli.py",
]

# Functions that run code, start a shell, or load a library or a module from a path: each use of these names is a violation.
FORBIDDEN = {
    *(f"builtins.{name}" for name in ("eval", "exec", "compile", "__import__")),
    *(f"os.{name}" for name in ("system", "popen", "startfile")),
    *(f"os.{kind}{end}" for kind in ("exec", "spawn") for end in ("l", "le", "lp", "lpe", "v", "ve", "vp", "vpe")),
    *(f"os.posix_spawn{end}" for end in ("", "p")),
    *(f"subprocess.{name}" for name in ("getoutput", "getstatusoutput")),
    "importlib.reload",
    "importlib.util.spec_from_file_location",
    "importlib.util.module_from_spec",
    "importlib.machinery.SourceFileLoader",
    "importlib.machinery.SourcelessFileLoader",
    "importlib.machinery.ExtensionFileLoader",
    "numpy.ctypeslib.load_library",
    "pandas.read_pickle",
    "polars.LazyFrame.deserialize",
    "torch.classes.load_library",
    "torch.jit.load",
    "torch.ops.load_library",
    "torch.serialization.add_safe_globals",
    "torch.serialization.safe_globals",
}
# Packages that read objects or code from files, or run code.
PACKAGES = (
    "pickle",
    "_pickle",
    "cloudpickle",
    "dill",
    "joblib",
    "jsonpickle",
    "marshal",
    "shelve",
    "yaml",
    "runpy",
    "code",
    "pty",
)
# Calls that need a keyword argument with this constant.
REQUIRED = {"numpy.load": ("allow_pickle", False), "torch.load": ("weights_only", True)}
# Calls whose first argument must be a constant.
CONSTANT = {
    "importlib.import_module",
    *(f"ctypes.{name}" for name in ("CDLL", "PyDLL", "WinDLL", "OleDLL")),
    *(f"ctypes.{name}.LoadLibrary" for name in ("cdll", "pydll", "windll", "oledll")),
}
# Keyword arguments that must be False in each call.
FALSE = ("allow_pickle", "shell")
# Packages that open connections.
CONNECTING = (
    *(
        "aiohttp",
        "asyncio",
        "ftplib",
        "http",
        "httpx",
        "pooch",
        "requests",
        "smtplib",
        "socket",
        "ssl",
        "urllib.request",
        "urllib3",
    ),
    *("torch.hub", "torchvision.datasets", "xmlrpc"),
)

# Violations that are allowed, by file and name, with the reason.
EXCEPTIONS = {
    # Numba serializes machine code as pickles. kernel_cache.py checks owner, permissions and hash of these files.
    ("fastmlp/engines/cpu/codegen/cache.py", "pickle"),
    ("fastmlp/engines/cpu/codegen/cache.py", "pickle.loads"),
    # The modules of public names are constants in the `__init__.py` files of the package.
    ("fastmlp/_lazy.py", "importlib.import_module"),
    # The names of other libraries are constants in the modules of bench/.
    ("fastmlp/bench/contestant.py", "importlib.import_module"),
    # It reads how many threads joblib's workers may use, and no file.
    ("fastmlp/estimators/threads.py", "joblib.parallel.get_active_backend"),
    # The only downloads, see FASTMLP_OFFLINE.
    ("fastmlp/data/download.py", "pooch"),
    ("fastmlp/data/download.py", "requests"),
    # It refuses connections, and needs the constant AF_UNIX.
    ("fastmlp/commands/common/offline.py", "socket"),
}


class Names(ast.NodeVisitor):
    """The full names in a file: `names` maps local names to what was imported, and `imported` lists the imports by line."""

    def __init__(self, tree: ast.AST) -> None:
        self.names = {name: f"builtins.{name}" for name in ("eval", "exec", "compile", "__import__")}
        self.imported: list[tuple[int, str]] = []
        self.visit(tree)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.imported.append((node.lineno, alias.name))
            self.names[alias.asname or alias.name.partition(".")[0]] = (
                alias.name if alias.asname else alias.name.partition(".")[0]
            )

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            self.imported.append((node.lineno, f"{'.' * node.level}{node.module or ''}.{alias.name}"))
            self.names[alias.asname or alias.name] = self.imported[-1][1]

    def full(self, node: ast.AST) -> str:
        """Return the full name of a Name or an Attribute, such as numpy.load for np.load, or "" for other nodes."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id, "")
        base = self.full(node.value) if isinstance(node, ast.Attribute) else ""
        return f"{base}.{node.attr}" if base and isinstance(node, ast.Attribute) else ""


def within(name: str, packages: tuple[str, ...]) -> bool:
    """Return whether a name is one of the packages or inside one of them."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def problems(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield the line, the name and the reason of each violation in a source text."""
    tree = ast.parse(text)
    names = Names(tree)
    for line, name in names.imported:
        if within(name, PACKAGES):
            yield line, name, "reads objects or code from files"
        if within(name, CONNECTING):
            yield line, name, "opens connections"
        if name in FORBIDDEN:
            yield line, name, "runs code"
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Load):
            name = names.full(node)
            if name in FORBIDDEN or (within(name, (*PACKAGES, "torch.hub")) and isinstance(node, ast.Attribute)):
                yield node.lineno, name, "runs code"
        if isinstance(node, ast.Call):
            yield from problems_of_call(node, names.full(node.func))


def problems_of_call(node: ast.Call, name: str) -> Iterator[tuple[int, str, str]]:
    """Yield the line, the name and the reason of each violation of a call by its arguments."""
    given = {keyword.arg: getattr(keyword.value, "value", ...) for keyword in node.keywords}
    for keyword in FALSE:
        if given.get(keyword, False) is not False:
            yield node.lineno, name, f"{keyword} is not False"
    if name in REQUIRED and given.get(REQUIRED[name][0]) is not REQUIRED[name][1]:
        yield node.lineno, name, "{}={} is missing".format(*REQUIRED[name])
    if name in CONSTANT and not (node.args and isinstance(node.args[0], ast.Constant)):
        yield node.lineno, name, "the first argument is not a constant"


def test_no_source_can_run_code_from_data() -> None:
    found = [
        (path.relative_to(ROOT).as_posix(), *problem)
        for path in FILES
        for problem in problems(path.read_text(encoding="utf-8"))
    ]
    unexpected = [f"{file}:{line}: {name}: {why}" for file, line, name, why in found if (file, name) not in EXCEPTIONS]
    assert not unexpected, "\n" + "\n".join(unexpected)
    assert {(file, name) for file, _, name, _ in found} == EXCEPTIONS  # none of the exceptions is left over


VIOLATIONS = [
    "eval(text)",
    "exec(text)",
    "run = exec",
    "list(map(eval, cells))",
    "compile(text, name, 'exec')",
    "import builtins\nbuiltins.eval(text)",
    "from builtins import exec as run",
    "__import__(name)",
    "import pickle",
    "import pickle as p\np.loads(data)",
    "from pickle import Unpickler",
    "from _pickle import loads",
    "def f():\n    import marshal",
    "import shelve",
    "import joblib",
    "from joblib import load",
    "import dill",
    "import cloudpickle",
    "import yaml\nyaml.safe_load(text)",
    "import runpy",
    "from code import interact",
    "import pty",
    "import torch\ntorch.load(file)",
    "import torch\ntorch.load(file, weights_only=False)",
    "import torch\ntorch.load(file, weights_only=flag)",
    "from torch import load\nload(file)",
    "import torch\ntorch.hub.load('a', 'b')",
    "from torch import hub",
    "import torch.jit\ntorch.jit.load(file)",
    "import torch\ntorch.ops.load_library(path)",
    "from torch.serialization import add_safe_globals",
    "import numpy as np\nnp.load(file)",
    "import numpy as np\nnp.load(file, allow_pickle=True)",
    "import numpy as np\nnp.load(file, allow_pickle=flag)",
    "from numpy import load as read\nread(file)",
    "from numpy.lib import format\nformat.read_array(file, allow_pickle=True)",
    "import pandas as pd\npd.read_pickle(file)",
    "import importlib\nimportlib.import_module(name)",
    "from importlib import import_module\nimport_module(f'fastmlp.{name}')",
    "import importlib.util\nimportlib.util.spec_from_file_location('a', path)",
    "from importlib.machinery import SourceFileLoader",
    "import ctypes\nctypes.CDLL(path)",
    "import ctypes\nctypes.cdll.LoadLibrary(path)",
    "from ctypes import CDLL\nCDLL(name=path)",
    "import numpy as np\nnp.ctypeslib.load_library(name, path)",
    "import subprocess\nsubprocess.run(text, shell=True)",
    "from subprocess import Popen\nPopen(text, shell=flag)",
    "import subprocess\nsubprocess.getoutput(text)",
    "import os\nos.system(text)",
    "from os import popen",
    "import os\nos.execv(path, arguments)",
    "import os\nos.posix_spawn(path, arguments, {})",
    "import requests",
    "from urllib.request import urlopen",
    "from urllib import request",
    "import http.client",
    "import socket",
    "from torchvision import datasets",
]


@pytest.mark.parametrize("text", VIOLATIONS)
def test_each_violation_is_detected(text: str) -> None:
    assert list(problems(text))


ALLOWED = [
    "import re\nre.compile(text)",
    "loop.compile()",
    "model.eval()",
    "import torch\ntorch.compile(step)",
    "import torch\ntorch.load(file, weights_only=True)",
    "import numpy as np\nnp.load(file, allow_pickle=False)",
    "import numpy as np\nnp.loadtxt(file)",
    "import json\njson.load(file)",
    "import importlib\nimportlib.import_module('llvmlite.binding')",
    "import ctypes\nctypes.CDLL(None)",
    "import subprocess\nsubprocess.run([program], shell=False)",
    "import urllib.parse",
    "from fastmlp.bench import code",
    "import os\nos.execution_time()",
    "class A:\n    compile: bool = False",
]


@pytest.mark.parametrize("text", ALLOWED)
def test_other_code_is_allowed(text: str) -> None:
    assert list(problems(text)) == []


def test_the_exceptions_are_in_the_checked_files() -> None:
    assert {file for file, _ in EXCEPTIONS} <= {path.relative_to(ROOT).as_posix() for path in FILES}
    assert all(isinstance(path, Path) and path.is_file() for path in FILES)
