"""The rules of the source tree, read from the source: who imports whom, sizes, docstrings, and what nobody may use.

Each checker is a function from source text to violations, and is shown one violation of each kind.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fastmlp

PACKAGE = Path(fastmlp.__file__).parent
ROOT = PACKAGE.parent
FILES = sorted(PACKAGE.glob("*.py"))
OTHERS = [*sorted((ROOT / "cnn").glob("*.py")), ROOT / "cli.py"]

# Data flow one way: a module imports only from modules above it, at its top or within a function.
GROUPS = (
    ("errors", "philox", "functions", "optimizers", "network", "rows", "preprocess", "contract", "reference"),
    ("torch_engine", "checks", "signals"),
    ("kernel_files", "cpu_cache", "cpu_simd", "cpu_instructions", "cpu_math", "cpu_compile", "cpu_beside", "cpu_threads"),
    ("cpu_plan", "cpu_products", "cpu_dropout", "cpu_losses", "cpu_formulas", "cpu_pieces", "cpu_kernels", "cpu"),
    ("cuda_shim", "cuda_words", "cuda_device", "cuda_plan", "cuda_pieces", "cuda_teams", "cuda_tiles", "cuda_mma"),
    ("cuda_tiled", "cuda_kernels", "cuda_compile", "cuda_runtime", "cuda", "backends"),
    ("model", "metrics", "evaluation", "artifacts", "run_folders", "tensorfile", "modelfile"),
    ("augment", "settings", "loop", "training", "many"),
    ("data_files", "data_npy", "data_tensors", "data_images", "data_fetch", "data", "features", "feature_files"),
    ("tables", "listings", "report", "pictures", "comparison_pictures", "progress"),
    (
        "config_kinds",
        "config",
        "config_extract",
        "config_sources",
        "recipes",
        "snapshots",
        "runs",
        "extraction",
        "extraction_pictures",
        "recipe_runs",
        "recipe_plots",
        "saved",
        "predictions",
        "console",
        "data_commands",
        "recipe_commands",
        "doctor",
    ),
    ("bench_machine", "bench_cases", "bench_contest", "bench_torch", "bench_rivals", "bench", "bench_report"),
)
ORDER = [name for group in GROUPS for name in group]

KERNEL_FILES = (
    "cpu_simd",
    "cpu_instructions",
    "cpu_math",
    "cpu_compile",
    "cpu_products",
    "cpu_dropout",
    "cpu_formulas",
    "cpu_pieces",
    "cpu_kernels",
    "cuda_device",
    "cuda_pieces",
    "cuda_teams",
    "cuda_tiles",
    "cuda_mma",
    "cuda_tiled",
    "cuda_kernels",
)
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


def check_order(name: str, text: str) -> list[str]:
    """Imports of fastmlp's modules that are not above this one."""
    if name not in ORDER:
        return [f"{name}: not in the table of modules; put it where its imports allow"]
    above = {f"fastmlp.{other}" for other in ORDER[: ORDER.index(name)]}
    found = []
    for line, target in imported(ast.parse(text)):
        package, *rest = target.split(".")
        if target.startswith("."):
            found.append(f"{name}:{line}: relative import {target}")
        elif package in ("cli", "cnn", "tests", "benchmarks"):
            found.append(f"{name}:{line}: {target} is not below the package")
        elif package == "fastmlp" and rest != ["__version__"] and ".".join([package, *rest[:1]]) not in above:
            found.append(f"{name}:{line}: {target} is not above {name} in the table")
    return found


def check_reference(name: str, text: str) -> list[str]:
    """The specification must not use what it judges, no scalar formula and no update rule; nor must the second opinion."""
    if name not in ("reference", "torch_engine"):
        return []
    allowed = {"fastmlp.optimizers.Optimizer", "fastmlp.philox.keep_mask"}
    judged = ("fastmlp.functions", "fastmlp.optimizers", "fastmlp.philox", "fastmlp.cpu", "fastmlp.reference")
    return [
        f"{name}:{line}: {target} is what this file judges"
        for line, target in imported(ast.parse(text))
        if target.startswith(judged) and target not in allowed
    ]


# package: files that may use all of it, and what others may import, to ask for versions and devices
HOMES: dict[str, tuple[tuple[str, ...], dict[str, set[str]]]] = {
    "llvmlite": (
        ("cpu_simd", "cpu_instructions", "cpu_dropout", "cuda_device"),
        {
            "cpu_cache": {"llvmlite"},
            "doctor": {"llvmlite", "llvmlite.binding"},
            "bench_machine": {"llvmlite.binding"},
        },
    ),
    "numba": (
        (*KERNEL_FILES, "cpu_cache", "cuda_shim", "cuda_compile"),
        {
            "doctor": {"numba", "numba.cuda"},
            "bench_machine": {"numba.njit"},
            "cpu_beside": {"numba.core.compiler_lock.global_compiler_lock"},
        },
    ),
    "cuda": (("cuda_shim",), {}),
    "pickle": (("cpu_cache",), {}),
}
NEVER = ("cloudpickle", "dill", "joblib", "marshal", "shelve", "multiprocessing")


def check_packages(name: str, text: str) -> list[str]:
    """LLVM in one file; pickle where Numba needs it, and nowhere else."""
    found = []
    for line, target in imported(ast.parse(text)):
        package = target.split(".")[0]
        homes, others = HOMES.get(package, ((name,), {}))
        if package in NEVER:
            found.append(f"{name}:{line}: {target}")
        elif name not in homes and target not in others.get(name, set()):
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
    most = MOST_KERNEL_LINES if name in KERNEL_FILES else MOST_FUNCTION_LINES
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
    check_order,
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
        if check is not check_order or path.stem != "__init__":
            found += check(path.stem, path.read_text(encoding="utf-8"))
    assert not found, "\n" + "\n".join(found)


def test_the_program_and_the_extractor_follow_the_general_rules() -> None:
    found = []
    for path in OTHERS:
        text = path.read_text(encoding="utf-8")
        for check in (check_packages, check_calls, check_sizes, check_docstrings, check_words):
            found += check(path.stem, text)
    assert not found, "\n" + "\n".join(found)


def test_tests_close_what_they_open() -> None:
    found = [
        line for path in sorted(Path(__file__).parent.glob("*.py")) for line in check_archives(path.stem, path.read_text())
    ]
    assert not found, "\n" + "\n".join(found)


def test_the_extractor_knows_nothing_of_the_engine() -> None:
    targets = [target for path in (ROOT / "cnn").glob("*.py") for _, target in imported(ast.parse(path.read_text()))]
    assert [target for target in targets if target.split(".")[0] in ("fastmlp", "cli")] == []


def test_the_table_names_every_module_once() -> None:
    assert sorted(ORDER) == sorted(path.stem for path in FILES if path.stem != "__init__")
    assert len(set(ORDER)) == len(ORDER)


def test_the_package_is_flat() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    assert folders <= {"__pycache__", "published"}
    assert {path.suffix for path in (PACKAGE / "published").iterdir()} == {".toml"}


LONG = "def f():\n    '''Doc.'''\n" + "    x = 1\n" * 41
TABLE = '"""Doc.\n\n==== =====\nname does\n==== =====\nadam this\n==== =====\n\nother words.\n"""'
NESTED = "def f():\n    '''Doc.'''\n    def g():\n" + "        x = 1\n" * 39 + "    return g\n"

VIOLATIONS: list[tuple[Callable[[str, str], list[str]], str, str, str]] = [
    (check_order, "functions", "import fastmlp.network", "not above"),
    (check_order, "functions", "def f():\n    from fastmlp.network import Network", "functions:2"),
    (check_order, "functions", "from fastmlp import network", "not above"),
    (check_order, "functions", "from fastmlp import Network", "not above"),
    (check_order, "functions", "from fastmlp import functions", "not above"),
    (check_order, "functions", "from . import errors", "relative"),
    (check_order, "functions", "import cli", "not below"),
    (check_order, "model", "def f():\n    import cnn.extract", "not below"),
    (check_order, "stranger", "", "not in the table"),
    (check_reference, "reference", "from fastmlp.functions import relu_value", "judges"),
    (check_reference, "reference", "from fastmlp.optimizers import Optimizer, RULES", "RULES"),
    (check_reference, "reference", "def f():\n    import fastmlp.functions", "judges"),
    (check_reference, "torch_engine", "from fastmlp.reference import forward", "judges"),
    (check_packages, "cpu_kernels", "from llvmlite import ir", "llvmlite.ir belongs to cpu_simd"),
    (check_packages, "cpu_cache", "from llvmlite import ir", "llvmlite.ir"),
    (check_packages, "doctor", "import llvmlite.ir", "llvmlite.ir"),
    (check_packages, "runs", "import llvmlite.binding", "llvmlite.binding"),
    (check_packages, "runs", "x = importlib.import_module('numba.cuda')", "numba.cuda"),
    (check_packages, "modelfile", "import pickle", "pickle"),
    (check_packages, "modelfile", "def f():\n    from pickle import loads", "pickle.loads"),
    (check_packages, "model", "import numba", "numba"),
    (check_packages, "model", "import joblib", "joblib"),
    (check_calls, "cpu_kernels", "from numba import prange", "prange"),
    (check_calls, "cpu_kernels", "for i in prange(3): pass", "prange"),
    (check_calls, "cpu_kernels", "for i in numba.prange(3): pass", "prange"),
    (check_calls, "cpu_kernels", "@njit(parallel=True)\ndef f(): pass", "parallel=True"),
    (check_calls, "cpu_kernels", "f = njit(fastmath={'contract'})(g)", "fastmath"),
    (check_calls, "data_files", "np.load(path, allow_pickle=True)", "allow_pickle=True"),
    (check_calls, "data_files", "np.load(path, allow_pickle=flag)", "allow_pickle=flag"),
    (check_calls, "config", "eval(text)", "eval"),
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
    (check_order, "network", "from fastmlp.functions import LOSSES\nimport numpy"),
    (check_order, "runs", "from fastmlp import __version__"),
    (check_reference, "reference", "from fastmlp.optimizers import Optimizer\nfrom fastmlp.philox import keep_mask"),
    (check_packages, "cpu_simd", "from llvmlite import ir\nfrom numba import types"),
    (check_packages, "doctor", "def f():\n    import llvmlite\n    import numba"),
    (check_packages, "cpu_cache", "import pickle"),
    (check_calls, "data_files", "np.load(path, allow_pickle=False)"),
    (check_archives, "test_extract", "with np.load('a.npz') as a:\n    x = np.load('a.npy', mmap_mode='r')"),
    (check_docstrings, "model", TABLE + "\ndef adam_rule(p):\n    p += 1\n    return p"),
    (check_sizes, "model", NESTED),
    (check_sizes, "cpu_kernels", LONG),
    (check_docstrings, "model", "'''Doc.'''\ndef _f():\n    x = 1\ndef g(z):\n    return z * z\nclass A:\n    'Doc.'"),
]


@pytest.mark.parametrize(("check", "name", "text"), INNOCENT)
def test_the_checkers_leave_good_text_alone(check: Callable[[str, str], list[str]], name: str, text: str) -> None:
    assert check(name, text) == []
