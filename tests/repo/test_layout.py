"""Rules for the source code: imports, sizes of files and functions, docstrings, and forbidden calls.

Each rule has a checker, a function that takes source code and returns the violations. The checkers are tested with violations.
"""

from __future__ import annotations

import ast
import configparser
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fastmlp

PACKAGE = Path(fastmlp.__file__).parent
ROOT = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))
OTHER_FILES = [*sorted((ROOT / "cnn").glob("*.py")), ROOT / "cli.py"]

# import-linter (setup.cfg) checks the import order of subpackages. This file checks rules that import-linter cannot express.
KERNELS = ("engines/cpu/kernels/", "engines/cpu/codegen/", "engines/cuda/kernels/")
EXTRACTOR_IMPORTER = "commands/common/toolkit"  # the only file that may import fastmlp.cnn
MAX_FILES = 12  # maximum number of Python files in a folder, without __init__.py
MAX_ENTRIES = 16  # maximum number of files and folders in the package folder
MAX_LINES = 400
MAX_FUNCTION_LINES = 40
MAX_KERNEL_LINES = 60


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the full name of every import, also within functions; `from a import b` gives a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            yield from [(node.lineno, str(a.value)) for a in node.args[:1] if isinstance(a, ast.Constant)]


def module_path(path: Path) -> str:
    """Return the path of a file relative to the package, without the suffix."""
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def check_imports(name: str, text: str) -> list[str]:
    """Check that imports are absolute, from modules of the package, and that only one file imports the extractor."""
    found = []
    for line, target in imported(ast.parse(text)):
        if target.startswith("."):
            found.append(f"{name}:{line}: relative import {target}")
        elif target.split(".")[0] in ("cli", "cnn", "tests", "benchmarks"):
            found.append(f"{name}:{line}: {target} is outside the package")
        elif name != "__init__" and target in {f"fastmlp.{public}" for public in fastmlp.__all__} - {"fastmlp.__version__"}:
            found.append(f"{name}:{line}: {target} is part of the public interface; import it from its module")
        elif target.startswith("fastmlp.cnn") and name != EXTRACTOR_IMPORTER:
            found.append(f"{name}:{line}: {target} is allowed only in {EXTRACTOR_IMPORTER}")
    return found


def check_reference(name: str, text: str) -> list[str]:
    """Check that the reference implementation and the PyTorch engine do not import the code that is tested against them."""
    if name not in ("reference", "engines/torch_engine"):
        return []
    allowed = ("network.", "blocks.", "scaling.", "philox.keep_mask", "optimizers.Optimizer")
    checked = ("fastmlp.nn.", "fastmlp.engines.cpu", "fastmlp.engines.cuda", "fastmlp.reference")
    return [
        f"{name}:{line}: {target} is checked against this file"
        for line, target in imported(ast.parse(text))
        if target.startswith(checked) and not target.removeprefix("fastmlp.nn.").startswith(allowed)
    ]


# For each package, the path prefixes of files that may import any of its names, and the names that single other files may
# import.
ALLOWED_IMPORTS: dict[str, tuple[tuple[str, ...], dict[str, set[str]]]] = {
    "llvmlite": (
        ("engines/cpu/codegen/", "engines/cuda/kernels/device"),
        {"commands/doctor": {"llvmlite", "llvmlite.binding"}, "bench/machine": {"llvmlite.binding"}},
    ),
    "numba": (
        ("engines/cpu/codegen/", "engines/cpu/kernels/", "engines/cuda/"),
        {
            "commands/doctor": {"numba", "numba.cuda"},
            "bench/machine": {"numba.njit"},
            "engines/functions": {"numba.njit", "numba.vectorize"},
            "engines/jit": {"numba.core.config"},
        },
    ),
    "cuda": (("engines/cuda/__init__",), {}),
}
FORBIDDEN = ("multiprocessing",)


def check_packages(name: str, text: str) -> list[str]:
    """Check that llvmlite, Numba and cuda are imported only by files in `ALLOWED_IMPORTS`."""
    found = []
    for line, target in imported(ast.parse(text)):
        package = target.split(".")[0]
        allowed, others = ALLOWED_IMPORTS.get(package, ((name,), {}))
        if package in FORBIDDEN:
            found.append(f"{name}:{line}: {target}")
        elif not name.startswith(allowed) and target not in others.get(name, set()):
            found.append(f"{name}:{line}: {target} is allowed only in {' and '.join(allowed)}")
    return found


def check_calls(name: str, text: str) -> list[str]:
    """Check that Numba's parallel and fastmath options are not used."""
    found = []
    for node in ast.walk(ast.parse(text)):
        spelt = getattr(node, "id", getattr(node, "attr", getattr(node, "name", None)))
        if spelt == "prange":
            found.append(f"{name}:{node.lineno}: {spelt}")
        if isinstance(node, ast.keyword) and node.arg in ("parallel", "fastmath"):
            value = ast.unparse(node.value)
            found += [] if value == "False" else [f"{name}:{node.value.lineno}: {node.arg}={value}"]
    return found


def check_archives(name: str, text: str) -> list[str]:
    """Check that archives are closed: `np.load` is used in a `with` statement or memory-maps the file."""
    tree = ast.parse(text)
    opened = {item.context_expr for node in ast.walk(tree) if isinstance(node, ast.With) for item in node.items}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "np.load"]
    unclosed = [node for node in calls if node not in opened and not any(key.arg == "mmap_mode" for key in node.keywords)]
    return [f"{name}:{node.lineno}: {ast.unparse(node)} is not closed" for node in unclosed]


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def own_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the number of lines of a function without its docstring and nested functions."""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    if not body:
        return 0
    first = min([body[0].lineno, *(d.lineno for d in getattr(body[0], "decorator_list", []))])
    lines = set(range(first, (node.end_lineno or first) + 1))
    for inner in functions(ast.Module(body, [])):
        starts = [inner.lineno, *(d.lineno for d in inner.decorator_list)]
        lines -= set(range(min(starts), (inner.end_lineno or 0) + 1))
    return len(lines)


def check_sizes(name: str, text: str) -> list[str]:
    """Check that the file and each of its functions do not have too many lines."""
    length = len(text.splitlines())
    found = [f"{name}: {length} lines, more than {MAX_LINES}"] if length > MAX_LINES else []
    most = MAX_KERNEL_LINES if name.startswith(KERNELS) else MAX_FUNCTION_LINES
    for node in functions(ast.parse(text)):
        if own_lines(node) > most:
            found.append(f"{name}:{node.lineno}: {node.name} has {own_lines(node)} lines, more than {most}")
    return found


def is_formula(node: ast.AST, rows: set[str]) -> bool:
    """Return whether a function needs no docstring.

    This is the case if its body is a one-line return statement, or if a table in a docstring describes it. A row of the table
    starts with the name of the function, possibly without its last part, such as adam for adam_rule.
    """
    if not isinstance(node, ast.FunctionDef):
        return False
    if {node.name.replace("_", "-"), node.name.rpartition("_")[0].replace("_", "-")} & rows:
        return True
    first = node.body[0]
    return len(node.body) == 1 and isinstance(first, ast.Return) and first.lineno == first.end_lineno


def table_rows(tree: ast.Module) -> set[str]:
    """Return the first words of the rows of tables in the docstrings of a module and its classes."""
    rows = set()
    for node in [tree, *(n for n in tree.body if isinstance(n, ast.ClassDef))]:
        inside = 0
        for line in (ast.get_docstring(node) or "").splitlines():
            ruler = line.strip().startswith("===")
            inside += ruler
            if inside and not ruler and line.strip():
                rows.add(line.split()[0])
            if not line.strip():
                inside = 0
    return rows


def check_docstrings(name: str, text: str) -> list[str]:
    """Check that the module and every public function and class have a docstring; formulas need none (see `is_formula`)."""
    tree = ast.parse(text)
    found = [] if ast.get_docstring(tree) else [f"{name}: no module docstring"]
    rows = table_rows(tree)
    for node in tree.body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
            continue
        if any(isinstance(one, ast.Name) and one.id == "overload" for one in node.decorator_list):
            continue
        if ast.get_docstring(node) is None and not is_formula(node, rows):
            found.append(f"{name}:{node.lineno}: {node.name} has no docstring")
    return found


def check_leftovers(name: str, text: str) -> list[str]:
    """Check that there are no markers of unfinished work and no debugger calls."""
    return [
        f"{name}:{number}: {word}"
        for number, line in enumerate(text.splitlines(), start=1)
        for word in ("TODO", "FIXME", "XXX", "HACK", "breakpoint(", "pdb")
        if word in line
    ]


CHECKS: list[Callable[[str, str], list[str]]] = [
    check_imports,
    check_reference,
    check_packages,
    check_calls,
    check_sizes,
    check_docstrings,
    check_leftovers,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_package_follows_the_rules(check: Callable[[str, str], list[str]]) -> None:
    found = []
    for path in FILES:
        found += check(module_path(path), path.read_text(encoding="utf-8"))
    assert not found, "\n" + "\n".join(found)


def test_the_program_and_the_extractor_follow_the_general_rules() -> None:
    found = []
    for path in OTHER_FILES:
        text = path.read_text(encoding="utf-8")
        for check in (check_packages, check_calls, check_sizes, check_docstrings, check_leftovers):
            found += check(path.stem, text)
    assert not found, "\n" + "\n".join(found)


def test_tests_close_opened_archives() -> None:
    found = [line for path in sorted((ROOT / "tests").rglob("*.py")) for line in check_archives(path.stem, path.read_text())]
    assert not found, "\n" + "\n".join(found)


def test_no_test_module_imports_another() -> None:
    """Test modules import helper functions only from support/, so that each of them can be moved or run alone."""
    tests = sorted((ROOT / "tests").rglob("*.py"))
    found = {path.stem: [name for _, name in imported(ast.parse(path.read_text())) if ".test_" in f".{name}"] for path in tests}
    assert {stem: names for stem, names in found.items() if names} == {}


def test_the_extractor_does_not_import_the_engine() -> None:
    """The extractor uses relative imports, so that it does not depend on the name of its package."""
    targets = [target for path in (ROOT / "cnn").glob("*.py") for _, target in imported(ast.parse(path.read_text()))]
    assert [target for target in targets if target.startswith(("fastmlp", "cli", "cnn", ".."))] == []


def overfull(package: Path) -> list[str]:
    """Return messages about folders of a package that have too many files or no `__init__.py`."""
    entries = [path for path in package.iterdir() if path.name not in ("__pycache__", "__init__.py", "py.typed")]
    found = [f"{package.name}: {len(entries)} entries"] if len(entries) > MAX_ENTRIES else []
    for folder in sorted({path.parent for path in package.rglob("*.py")}):
        files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        if len(files) > MAX_FILES:
            found.append(f"{folder.relative_to(package).as_posix()}: {len(files)} files")
        if not (folder / "__init__.py").is_file():
            found.append(f"{folder.relative_to(package).as_posix()}: no __init__.py")
    return found


def test_no_folder_has_too_many_files() -> None:
    assert overfull(PACKAGE) == []


def test_every_folder_is_installed() -> None:
    """setup.cfg lists all packages. They are listed because automatic discovery would not find cnn/."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    folders = {path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in PACKAGE.rglob("__init__.py")}
    assert set(setup["options"]["packages"].split()) == folders | {"fastmlp.cnn"}


def test_a_folder_with_too_many_files_is_detected(tmp_path: Path) -> None:
    (tmp_path / "__init__.py").touch()
    for number in range(13):
        for folder in (tmp_path / "sub", tmp_path / f"sub{number}"):
            folder.mkdir(exist_ok=True)
            (folder / "__init__.py").touch()
        (tmp_path / "sub" / f"file{number}.py").touch()
        (tmp_path / f"file{number}.py").touch()
    assert overfull(tmp_path) == [f"{tmp_path.name}: 27 entries", ".: 13 files", "sub: 13 files"]
    (tmp_path / "sub" / "file0.py").unlink()
    (tmp_path / "sub" / "__init__.py").unlink()
    assert overfull(tmp_path)[2:] == ["sub: no __init__.py"]


LONG = "def f():\n    '''Doc.'''\n" + "    x = 1\n" * 41
TABLE = '"""Doc.\n\n==== =====\nname does\n==== =====\nadam this\n==== =====\n\nother words.\n"""'
NESTED = "def f():\n    '''Doc.'''\n    def g():\n" + "        x = 1\n" * 39 + "    return g\n"

VIOLATIONS: list[tuple[Callable[[str, str], list[str]], str, str, str]] = [
    (check_imports, "nn/activations", "from . import errors", "relative"),
    (check_imports, "nn/activations", "import cli", "outside"),
    (check_imports, "models/model", "def f():\n    from fastmlp import Network", "public interface"),
    (check_imports, "models/model", "def f():\n    import cnn.extractor", "outside"),
    (check_imports, "experiments/features/chain", "def f():\n    from fastmlp.cnn import toolkit", "is allowed only in"),
    (check_imports, "commands/extract", "import fastmlp.cnn", "is allowed only in"),
    (check_reference, "reference", "from fastmlp.nn.activations import relu_value", "checked against"),
    (check_reference, "reference", "from fastmlp.nn.optimizers import Optimizer, RULES", "RULES"),
    (check_reference, "reference", "def f():\n    import fastmlp.nn.activations", "checked against"),
    (check_reference, "engines/torch_engine", "from fastmlp.reference import forward", "checked against"),
    (check_packages, "engines/cpu/kernels/programs", "from llvmlite import ir", "llvmlite.ir is allowed only in"),
    (check_packages, "engines/cpu/plan", "from llvmlite import ir", "llvmlite.ir"),
    (check_packages, "commands/doctor", "import llvmlite.ir", "llvmlite.ir"),
    (check_packages, "experiments/plan", "import llvmlite.binding", "llvmlite.binding"),
    (check_packages, "experiments/plan", "x = importlib.import_module('numba.cuda')", "numba.cuda"),
    (check_packages, "models/model", "import numba", "numba"),
    (check_packages, "models/model", "def f():\n    from multiprocessing import Pool", "multiprocessing.Pool"),
    (check_calls, "engines/cpu/kernels/programs", "from numba import prange", "prange"),
    (check_calls, "engines/cpu/kernels/programs", "for i in prange(3): pass", "prange"),
    (check_calls, "engines/cpu/kernels/programs", "for i in numba.prange(3): pass", "prange"),
    (check_calls, "engines/cpu/kernels/programs", "@njit(parallel=True)\ndef f(): pass", "parallel=True"),
    (check_calls, "engines/cpu/kernels/programs", "f = njit(fastmath={'contract'})(g)", "fastmath"),
    (check_archives, "test_extract", "x = np.load('a.npz')['x']", "not closed"),
    (check_sizes, "model", "x = 1\n" * 401, "401 lines"),
    (check_sizes, "model", LONG, "f has 41 lines"),
    (check_docstrings, "model", "x = 1", "no module docstring"),
    (check_docstrings, "model", "'''Doc.'''\ndef f():\n    x = 1\n    return x", "f has no docstring"),
    (check_docstrings, "model", TABLE + "\ndef other_rule(p):\n    p += 1\n    return p", "other_rule"),
    (check_docstrings, "model", "'''Doc.'''\nclass A:\n    x = 1", "A has no docstring"),
    (check_leftovers, "model", "x = 1  # TO" + "DO later", "TO" + "DO"),
]


@pytest.mark.parametrize(("check", "name", "text", "message"), VIOLATIONS)
def test_each_checker_detects_a_violation(check: Callable[[str, str], list[str]], name: str, text: str, message: str) -> None:
    found = check(name, text)
    assert len(found) == 1
    assert message in found[0]


ALLOWED: list[tuple[Callable[[str, str], list[str]], str, str]] = [
    (check_imports, "experiments/plan", "from fastmlp import __version__\nfrom fastmlp.nn import Network"),
    (check_imports, EXTRACTOR_IMPORTER, "def f():\n    from fastmlp.cnn import toolkit"),
    (check_reference, "reference", "from fastmlp.nn.optimizers import Optimizer\nfrom fastmlp.nn.philox import keep_mask"),
    (check_reference, "reference", "from fastmlp.nn.network import Network"),
    (check_packages, "engines/cpu/codegen/simd", "from llvmlite import ir\nfrom numba import types"),
    (check_packages, "commands/doctor", "def f():\n    import llvmlite\n    import numba"),
    (check_calls, "engines/cpu/kernels/programs", "@njit(parallel=False)\ndef f(): pass"),
    (check_archives, "test_extract", "with np.load('a.npz') as a:\n    x = np.load('a.npy', mmap_mode='r')"),
    (check_docstrings, "model", TABLE + "\ndef adam_rule(p):\n    p += 1\n    return p"),
    (check_sizes, "model", NESTED),
    (check_sizes, "engines/cpu/kernels/programs", LONG),
    (check_docstrings, "model", "'''Doc.'''\ndef _f():\n    x = 1\ndef g(z):\n    return z * z\nclass A:\n    'Doc.'"),
]


@pytest.mark.parametrize(("check", "name", "text"), ALLOWED)
def test_the_checkers_accept_allowed_source(check: Callable[[str, str], list[str]], name: str, text: str) -> None:
    assert check(name, text) == []
