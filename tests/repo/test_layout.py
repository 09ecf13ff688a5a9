"""The rules of the source tree, read from the source: who imports whom, sizes, docstrings, and what nobody may use.

Each checker is a function from source text to violations, and is shown one violation of each kind.
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
OTHERS = [*sorted((ROOT / "cnn").glob("*.py")), ROOT / "cli.py"]

# Who may import whom is import-linter's (setup.cfg); what it cannot see is checked here.
KERNELS = ("engines/cpu/kernels/", "engines/cpu/codegen/", "engines/cuda/kernels/")
EXTRACTOR_DOOR = "commands/toolkit"  # the one file that imports the extractor, which import-linter does not find
MOST_FILES = 12  # of a folder, beside its __init__.py
MOST_ENTRIES = 16  # of the package
MOST_LINES = 400
MOST_FUNCTION_LINES = 40
MOST_KERNEL_LINES = 60


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full name of everything imported, anywhere and anyhow; `from a import b` counts as a.b."""
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


def name_of(path: Path) -> str:
    """A file's name in what follows: its path below the package, without the ending."""
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def check_imports(name: str, text: str) -> list[str]:
    """No relative imports, nothing from beside the package or through its door, and the extractor at one place."""
    found = []
    for line, target in imported(ast.parse(text)):
        if target.startswith("."):
            found.append(f"{name}:{line}: relative import {target}")
        elif target.split(".")[0] in ("cli", "cnn", "tests", "benchmarks"):
            found.append(f"{name}:{line}: {target} is not below the package")
        elif name != "__init__" and target in {f"fastmlp.{public}" for public in fastmlp.__all__} - {"fastmlp.__version__"}:
            found.append(f"{name}:{line}: {target} goes through the package's door; name its wing")
        elif target.startswith("fastmlp.cnn") and name != EXTRACTOR_DOOR:
            found.append(f"{name}:{line}: {target} belongs to {EXTRACTOR_DOOR}")
    return found


def check_reference(name: str, text: str) -> list[str]:
    """The specification must not use what it judges, no scalar formula and no update rule; nor must the second opinion."""
    if name not in ("reference", "engines/torch_engine"):
        return []
    allowed = ("network.", "blocks.", "scaling.", "philox.keep_mask", "optimizers.Optimizer")
    judged = ("fastmlp.nn.", "fastmlp.engines.cpu", "fastmlp.engines.cuda", "fastmlp.reference")
    return [
        f"{name}:{line}: {target} is what this file judges"
        for line, target in imported(ast.parse(text))
        if target.startswith(judged) and not target.removeprefix("fastmlp.nn.").startswith(allowed)
    ]


# package: places that may use all of it, and what others may import, to ask for versions and devices
HOMES: dict[str, tuple[tuple[str, ...], dict[str, set[str]]]] = {
    "llvmlite": (
        ("engines/cpu/codegen/", "engines/cuda/kernels/device"),
        {"commands/doctor": {"llvmlite", "llvmlite.binding"}, "bench/machine": {"llvmlite.binding"}},
    ),
    "numba": (
        ("engines/cpu/codegen/", "engines/cpu/kernels/", "engines/cuda/"),
        {"commands/doctor": {"numba", "numba.cuda"}, "bench/machine": {"numba.njit"}},
    ),
    "cuda": (("engines/cuda/__init__",), {}),
    "pickle": (("engines/cpu/codegen/cache",), {}),
}
NEVER = ("cloudpickle", "dill", "joblib", "marshal", "shelve", "multiprocessing")


def check_packages(name: str, text: str) -> list[str]:
    """LLVM, Numba and pickle at their homes, and nowhere else."""
    found = []
    for line, target in imported(ast.parse(text)):
        package = target.split(".")[0]
        homes, others = HOMES.get(package, ((name,), {}))
        if package in NEVER:
            found.append(f"{name}:{line}: {target}")
        elif not name.startswith(homes) and target not in others.get(name, set()):
            found.append(f"{name}:{line}: {target} belongs to {' and '.join(homes)}")
    return found


def check_calls(name: str, text: str) -> list[str]:
    """No OpenMP by the back door, no fastmath, no unpickling by NumPy, no eval."""
    found = []
    for node in ast.walk(ast.parse(text)):
        spelt = getattr(node, "id", getattr(node, "attr", getattr(node, "name", None)))
        if spelt == "prange" or (spelt in ("eval", "exec") and isinstance(node, ast.Name)):
            found.append(f"{name}:{node.lineno}: {spelt}")
        if isinstance(node, ast.keyword) and node.arg in ("parallel", "fastmath", "allow_pickle"):
            value = ast.unparse(node.value)
            found += [] if value == "False" else [f"{name}:{node.value.lineno}: {node.arg}={value}"]
    return found


def check_archives(name: str, text: str) -> list[str]:
    """Archives are closed by whoever opens them: `np.load` stands in a `with`, or maps the file."""
    tree = ast.parse(text)
    opened = {item.context_expr for node in ast.walk(tree) if isinstance(node, ast.With) for item in node.items}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "np.load"]
    open_still = [node for node in calls if node not in opened and not any(key.arg == "mmap_mode" for key in node.keywords)]
    return [f"{name}:{node.lineno}: {ast.unparse(node)} is not closed" for node in open_still]


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def own_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function's body without its docstring and without functions defined in it."""
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
    """Lines of the file and of each function."""
    length = len(text.splitlines())
    found = [f"{name}: {length} lines, more than {MOST_LINES}"] if length > MOST_LINES else []
    most = MOST_KERNEL_LINES if name.startswith(KERNELS) else MOST_FUNCTION_LINES
    for node in functions(ast.parse(text)):
        if own_lines(node) > most:
            found.append(f"{name}:{node.lineno}: {node.name} has {own_lines(node)} lines, more than {most}")
    return found


def is_formula(node: ast.AST, rows: set[str]) -> bool:
    """Whether a function says itself what it is: one return of one line, or a row of a table in a docstring.

    The row's first word is the function's name, or its name without the last part: adam for adam_rule.
    """
    if not isinstance(node, ast.FunctionDef):
        return False
    if {node.name.replace("_", "-"), node.name.rpartition("_")[0].replace("_", "-")} & rows:
        return True
    first = node.body[0]
    return len(node.body) == 1 and isinstance(first, ast.Return) and first.lineno == first.end_lineno


def table_rows(tree: ast.Module) -> set[str]:
    """First words of the lines of tables (between lines of =) in the docstrings of a module and its classes."""
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
    """A docstring for the module and for every public function and class that is not a formula."""
    tree = ast.parse(text)
    found = [] if ast.get_docstring(tree) else [f"{name}: no module docstring"]
    rows = table_rows(tree)
    for node in tree.body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
            continue
        if ast.get_docstring(node) is None and not is_formula(node, rows):
            found.append(f"{name}:{node.lineno}: {node.name} has no docstring")
    return found


def check_words(name: str, text: str) -> list[str]:
    """Nothing half done or left over."""
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
    check_words,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_package_follows_the_rules(check: Callable[[str, str], list[str]]) -> None:
    found = []
    for path in FILES:
        found += check(name_of(path), path.read_text(encoding="utf-8"))
    assert not found, "\n" + "\n".join(found)


def test_the_program_and_the_extractor_follow_the_general_rules() -> None:
    found = []
    for path in OTHERS:
        text = path.read_text(encoding="utf-8")
        for check in (check_packages, check_calls, check_sizes, check_docstrings, check_words):
            found += check(path.stem, text)
    assert not found, "\n" + "\n".join(found)


def test_tests_close_what_they_open() -> None:
    found = [line for path in sorted((ROOT / "tests").rglob("*.py")) for line in check_archives(path.stem, path.read_text())]
    assert not found, "\n" + "\n".join(found)


def test_no_test_imports_another() -> None:
    """Helpers are in support/, so that a test can be moved, or run, alone."""
    tests = sorted((ROOT / "tests").rglob("*.py"))
    found = {path.stem: [name for _, name in imported(ast.parse(path.read_text())) if ".test_" in f".{name}"] for path in tests}
    assert {stem: names for stem, names in found.items() if names} == {}


def test_the_extractor_knows_nothing_of_the_engine() -> None:
    """Of its own it imports relatively, so it does not even know its name."""
    targets = [target for path in (ROOT / "cnn").glob("*.py") for _, target in imported(ast.parse(path.read_text()))]
    assert [target for target in targets if target.startswith(("fastmlp", "cli", "cnn", ".."))] == []


def crowded(package: Path) -> list[str]:
    """Folders of a package with more files than a newcomer reads, and the package itself if it has too many entries."""
    entries = [path for path in package.iterdir() if path.name not in ("__pycache__", "__init__.py", "py.typed")]
    found = [f"{package.name}: {len(entries)} entries"] if len(entries) > MOST_ENTRIES else []
    for folder in sorted({path.parent for path in package.rglob("*.py")}):
        files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        if len(files) > MOST_FILES:
            found.append(f"{folder.relative_to(package).as_posix()}: {len(files)} files")
        if not (folder / "__init__.py").is_file():
            found.append(f"{folder.relative_to(package).as_posix()}: no __init__.py")
    return found


def test_no_folder_is_crowded() -> None:
    assert crowded(PACKAGE) == []


def test_every_folder_is_installed() -> None:
    """The list of packages in setup.cfg, which cannot be found by itself since cnn/ lies beside the package."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    folders = {path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in PACKAGE.rglob("__init__.py")}
    assert set(setup["options"]["packages"].split()) == folders | {"fastmlp.cnn"}


def test_a_crowded_folder_is_seen(tmp_path: Path) -> None:
    (tmp_path / "__init__.py").touch()
    for number in range(13):
        for folder in (tmp_path / "wing", tmp_path / f"wing{number}"):
            folder.mkdir(exist_ok=True)
            (folder / "__init__.py").touch()
        (tmp_path / "wing" / f"file{number}.py").touch()
        (tmp_path / f"file{number}.py").touch()
    assert crowded(tmp_path) == [f"{tmp_path.name}: 27 entries", ".: 13 files", "wing: 13 files"]
    (tmp_path / "wing" / "file0.py").unlink()
    (tmp_path / "wing" / "__init__.py").unlink()
    assert crowded(tmp_path)[2:] == ["wing: no __init__.py"]


LONG = "def f():\n    '''Doc.'''\n" + "    x = 1\n" * 41
TABLE = '"""Doc.\n\n==== =====\nname does\n==== =====\nadam this\n==== =====\n\nother words.\n"""'
NESTED = "def f():\n    '''Doc.'''\n    def g():\n" + "        x = 1\n" * 39 + "    return g\n"

VIOLATIONS: list[tuple[Callable[[str, str], list[str]], str, str, str]] = [
    (check_imports, "nn/activations", "from . import errors", "relative"),
    (check_imports, "nn/activations", "import cli", "not below"),
    (check_imports, "models/model", "def f():\n    from fastmlp import Network", "door"),
    (check_imports, "models/model", "def f():\n    import cnn.extractor", "not below"),
    (check_imports, "experiments/chain", "def f():\n    from fastmlp.cnn import toolkit", "belongs to"),
    (check_imports, "commands/extract", "import fastmlp.cnn", "belongs to"),
    (check_reference, "reference", "from fastmlp.nn.activations import relu_value", "judges"),
    (check_reference, "reference", "from fastmlp.nn.optimizers import Optimizer, RULES", "RULES"),
    (check_reference, "reference", "def f():\n    import fastmlp.nn.activations", "judges"),
    (check_reference, "engines/torch_engine", "from fastmlp.reference import forward", "judges"),
    (check_packages, "engines/cpu/kernels/programs", "from llvmlite import ir", "llvmlite.ir belongs to engines/cpu/codegen"),
    (check_packages, "engines/cpu/plan", "from llvmlite import ir", "llvmlite.ir"),
    (check_packages, "commands/doctor", "import llvmlite.ir", "llvmlite.ir"),
    (check_packages, "experiments/plan", "import llvmlite.binding", "llvmlite.binding"),
    (check_packages, "experiments/plan", "x = importlib.import_module('numba.cuda')", "numba.cuda"),
    (check_packages, "models/file", "import pickle", "pickle"),
    (check_packages, "models/file", "def f():\n    from pickle import loads", "pickle.loads"),
    (check_packages, "models/model", "import numba", "numba"),
    (check_packages, "models/model", "import joblib", "joblib"),
    (check_calls, "engines/cpu/kernels/programs", "from numba import prange", "prange"),
    (check_calls, "engines/cpu/kernels/programs", "for i in prange(3): pass", "prange"),
    (check_calls, "engines/cpu/kernels/programs", "for i in numba.prange(3): pass", "prange"),
    (check_calls, "engines/cpu/kernels/programs", "@njit(parallel=True)\ndef f(): pass", "parallel=True"),
    (check_calls, "engines/cpu/kernels/programs", "f = njit(fastmath={'contract'})(g)", "fastmath"),
    (check_calls, "data/arrays", "np.load(path, allow_pickle=True)", "allow_pickle=True"),
    (check_calls, "data/arrays", "np.load(path, allow_pickle=flag)", "allow_pickle=flag"),
    (check_calls, "experiments/config/train", "eval(text)", "eval"),
    (check_archives, "test_extract", "x = np.load('a.npz')['x']", "not closed"),
    (check_sizes, "model", "x = 1\n" * 401, "401 lines"),
    (check_sizes, "model", LONG, "f has 41 lines"),
    (check_docstrings, "model", "x = 1", "no module docstring"),
    (check_docstrings, "model", "'''Doc.'''\ndef f():\n    x = 1\n    return x", "f has no docstring"),
    (check_docstrings, "model", TABLE + "\ndef other_rule(p):\n    p += 1\n    return p", "other_rule"),
    (check_docstrings, "model", "'''Doc.'''\nclass A:\n    x = 1", "A has no docstring"),
    (check_words, "model", "x = 1  # TO" + "DO later", "TO" + "DO"),
]


@pytest.mark.parametrize(("check", "name", "text", "message"), VIOLATIONS)
def test_each_checker_sees_a_violation(check: Callable[[str, str], list[str]], name: str, text: str, message: str) -> None:
    found = check(name, text)
    assert len(found) == 1
    assert message in found[0]


INNOCENT: list[tuple[Callable[[str, str], list[str]], str, str]] = [
    (check_imports, "experiments/plan", "from fastmlp import __version__\nfrom fastmlp.nn import Network"),
    (check_imports, EXTRACTOR_DOOR, "def f():\n    from fastmlp.cnn import toolkit"),
    (check_reference, "reference", "from fastmlp.nn.optimizers import Optimizer\nfrom fastmlp.nn.philox import keep_mask"),
    (check_reference, "reference", "from fastmlp.nn.network import Network"),
    (check_packages, "engines/cpu/codegen/simd", "from llvmlite import ir\nfrom numba import types"),
    (check_packages, "commands/doctor", "def f():\n    import llvmlite\n    import numba"),
    (check_packages, "engines/cpu/codegen/cache", "import pickle"),
    (check_calls, "data/arrays", "np.load(path, allow_pickle=False)"),
    (check_archives, "test_extract", "with np.load('a.npz') as a:\n    x = np.load('a.npy', mmap_mode='r')"),
    (check_docstrings, "model", TABLE + "\ndef adam_rule(p):\n    p += 1\n    return p"),
    (check_sizes, "model", NESTED),
    (check_sizes, "engines/cpu/kernels/programs", LONG),
    (check_docstrings, "model", "'''Doc.'''\ndef _f():\n    x = 1\ndef g(z):\n    return z * z\nclass A:\n    'Doc.'"),
]


@pytest.mark.parametrize(("check", "name", "text"), INNOCENT)
def test_the_checkers_leave_good_text_alone(check: Callable[[str, str], list[str]], name: str, text: str) -> None:
    assert check(name, text) == []
