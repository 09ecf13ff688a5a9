"""The command `fastmlp doctor`: it checks the installation, and runs a self-test of the engines.

It repairs and downloads nothing. Every command imports this module, so heavy packages are imported only in the checks.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

from fastmlp import __version__
from fastmlp.commands.common.console import show, show_json
from fastmlp.commands.common.options import Command, common_options, data_dir_option
from fastmlp.engines import Version, installed_version
from fastmlp.engines.cuda import INSTALL
from fastmlp.engines.jit import JitDisabledError
from fastmlp.errors import FastMLPError, UnavailableError, printable
from fastmlp.files.reading import exists

OK, NOTE, BROKEN = "ok", "note", "broken"

CORE = ("numpy", "numba", "llvmlite", "scikit-learn", "scipy", "matplotlib", "safetensors")
CNN = ("torch", "torchvision")
INSTALL_CNN = "for `extract`: pip install 'fastmlp[cnn]'"
INSTRUCTION_SETS = ("avx512f", "avx2", "fma", "neon", "sve")  # as named by LLVM

SELF_TEST_TOLERANCE = 1e-4  # largest relative difference of losses that float32 rounding may cause


class Check(NamedTuple):
    """Result of a check: its name, the value found, the state ("ok", "note" or "broken"), and a remedy or ""."""

    name: str
    value: str
    state: str = OK
    remedy: str = ""


def examine(data_dir: str | None = None) -> list[Check]:
    """Run all checks, and return their results in the order in which they are displayed.

    Parameters
    ----------
    data_dir : folder with the named data sets, see `download.data_folder`

    Examples
    --------
    >>> [check.value for check in examine() if check.name == "fastmlp"] == [__version__]
    True
    """
    from fastmlp.engines.cuda.engine import probe_device
    from fastmlp.engines.kernel_cache import cache_folder

    return [
        *check_versions(installed_version),
        check_processor(),
        *check_threads(),
        check_cache(cache_folder()),
        *check_data(data_dir),
        *check_cuda(installed_version, probe_device),
        *check_torchvision(installed_version),
        self_test(),
    ]


def is_broken(checks: list[Check]) -> bool:
    """Return whether any check has the state "broken"."""
    return any(check.state == BROKEN for check in checks)


def as_table(checks: list[Check]) -> str:
    """Return the checks as a table.

    >>> print(as_table([Check("numpy", "2.4.6"), Check("torch", "not installed", NOTE, "pip install torch")]))
    ok      numpy  2.4.6
    note    torch  not installed (pip install torch)
    """
    width = max(len(check.name) for check in checks)
    ends = {check: f" ({check.remedy})" if check.remedy else "" for check in checks}
    return "\n".join(printable(f"{one.state:<6}  {one.name:<{width}}  {one.value}{ends[one]}") for one in checks)


# ------------------------------------------------------------------------------------------------ packages


def check_versions(version: Version) -> Iterator[Check]:
    """Report the versions of Python and of the required and optional packages."""
    yield Check("fastmlp", __version__)
    yield Check("python", f"{platform.python_version()} ({sys.executable})")
    for package in CORE:
        found = version(package)
        broken = Check(package, "missing", BROKEN, f"pip install {package}")
        yield broken if found is None else Check(package, found)
    for package in CNN:
        found = version(package)
        yield Check(package, "not installed", NOTE, INSTALL_CNN) if found is None else Check(package, found)


def check_torchvision(version: Version) -> Iterator[Check]:
    """Check that torchvision works with the installed torch; a CPU build of one may not work with a CUDA build of the other."""
    torch, torchvision = (version(package) for package in CNN)
    if torch is None or torchvision is None:
        return
    builds = [found.partition("+")[2] for found in (torch, torchvision)]
    if builds[0] == builds[1]:  # skip the import below, which takes seconds
        yield Check("torchvision build", builds[0] or "same as torch")
        return
    command = [sys.executable, "-c", "import torchvision"]
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    if tried.returncode == 0:
        yield Check("torchvision build", "can be imported with this torch")
        return
    reason = (tried.stderr.strip().splitlines() or ["no message"])[-1]
    remedy = f"pip install torchvision --index-url https://download.pytorch.org/whl/{builds[0] or 'cpu'}"
    yield Check("torchvision build", f"is incompatible with torch {torch}: {reason}", BROKEN, remedy)


# ------------------------------------------------------------------------------------------------ machine


def check_processor() -> Check:
    """Report the processor and its vector instruction sets, as detected by LLVM."""
    try:
        llvm: Any = importlib.import_module("llvmlite.binding")
    except (ImportError, OSError) as error:
        return Check("processor", f"llvmlite cannot be imported: {error}", BROKEN, "pip install --force-reinstall llvmlite")
    features = llvm.get_host_cpu_features()
    sets = [name for name in INSTRUCTION_SETS if features.get(name)]
    return Check("processor", f"{llvm.get_host_cpu_name()}, {platform.machine()}, {' '.join(sets) or 'no vector instructions'}")


def check_threads() -> Iterator[Check]:
    """Report the number of cores, the limits for this process, and the default number of threads."""
    from fastmlp.engines.cpu.threads import available_cores

    cores, usable = os.cpu_count() or 1, available_cores()
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    quota = Path("/sys/fs/cgroup/cpu.max")
    limit = quota.read_text().split()[0] if exists(quota) else "none"
    yield Check("cores", f"{cores}; CPU affinity: {affinity}; cgroup CPU quota: {limit}")
    yield Check("threads", f"{usable} by default; --threads changes it")


def check_cache(folder: Path) -> Check:
    """Check that compiled kernels can be cached."""
    from fastmlp.engines.kernel_cache import UnsafeFolder, file_sizes, reason

    remedy = "kernels are recompiled at each start; set FASTMLP_CACHE_DIR to a folder that only you can write to"
    there = folder
    while not exists(there):
        there = there.parent
    if not os.access(there, os.W_OK | os.X_OK):
        return Check("kernel cache", f"{folder}: no permission to write to {there}", NOTE, remedy)
    if there != folder:
        return Check("kernel cache", f"{folder}: created at first use")
    try:
        sizes = file_sizes(folder)
    except (OSError, UnsafeFolder) as error:
        return Check("kernel cache", reason(folder, error), NOTE, remedy)
    return Check("kernel cache", f"{folder}: {len(sizes)} files, {sum(sizes) / 1e6:.1f} MB, private")


def check_data(data_dir: str | None) -> Iterator[Check]:
    """Report the data folder, and which named data sets it contains."""
    from fastmlp.data.download import data_folder
    from fastmlp.data.named import list_data

    yield Check("data folder", str(data_folder(data_dir)))
    for row in list_data(data_dir):
        fetch = f"fastmlp data fetch {row.name}"
        if row.state in ("embedded", "present"):
            yield Check(f"data {row.name}", row.state)
        else:
            yield Check(f"data {row.name}", row.state, NOTE, fetch)


def check_cuda(version: Version, probe_device: Callable[[], Any]) -> Iterator[Check]:
    """Check numba-cuda, whether it supports the installed NumPy, and the GPU.

    `probe_device` runs a kernel on the GPU and returns the device; it raises UnavailableError if that fails.
    """
    found, numpy = version("numba-cuda"), version("numpy") or "0"
    if found is None:
        yield Check("numba-cuda", "not installed", NOTE, f"for a CUDA GPU: {INSTALL}")
        return
    if tuple(map(int, numpy.split(".")[:2])) >= (2, 5):
        yield Check(
            "numba-cuda", f"{found}, made for NumPy below 2.5, not {numpy}", NOTE, "if it fails: pip install 'numpy<2.5'"
        )
    else:
        yield Check("numba-cuda", found)
    try:
        device = probe_device()
        major, minor = device.capability
        yield Check("cuda device", f"{device.name}, compute capability {major}.{minor}, {device.blocks} multiprocessors")
    except UnavailableError as error:
        yield Check("cuda device", str(error), NOTE, "check the driver with nvidia-smi")


# ------------------------------------------------------------------------------------------------ self-test


def self_test() -> Check:
    """Train a tiny network with the engines numpy and numba, and check that their losses differ only by rounding."""
    try:
        first, second = (tiny_losses(backend) for backend in ("numpy", "numba"))
    except JitDisabledError as error:
        return Check("self-test", f"not run: {error}", NOTE)
    except (FastMLPError, ImportError) as error:
        return Check("self-test", str(error), BROKEN, "pip install --force-reinstall numba numpy")
    return compare_losses(first, second)


def compare_losses(first: list[float], second: list[float]) -> Check:
    """Check that two lists of losses agree within `SELF_TEST_TOLERANCE`."""
    worst = float(np.max(np.abs(np.subtract(first, second)) / np.abs(first)))
    text = f"the losses of the numpy and numba engines differ by at most {worst:.1e}"
    if worst <= SELF_TEST_TOLERANCE:
        return Check("self-test", text)
    return Check("self-test", text, BROKEN, "use --backend numpy, and report this bug with the whole table")


def tiny_losses(backend: str) -> list[float]:
    """Train a tiny network on random data, and return the loss of each epoch. All engines get the same data and weights."""
    from fastmlp.nn.network import Network
    from fastmlp.nn.optimizers import SGD
    from fastmlp.training.api import train

    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(128, 16)).astype(np.float32), draw.integers(0, 4, 128)
    result = train(Network(hidden=24), (x, y), optimizer=SGD(0.1), scaling=None, epochs=5, batch_size=20, backend=backend)
    return [row["loss"] for row in result.history]


@click.command(cls=Command)
@data_dir_option
@common_options
def doctor(data_dir: str | None, as_json: bool) -> None:
    """Check the installation and run a self-test.

    The exit code is 4 if a check reports "broken". A missing optional package is only a note.
    """
    checks = examine(data_dir)
    broken = [check.name for check in checks if check.state == BROKEN]
    if as_json:
        show_json({"ok": not broken, "checks": [check._asdict() for check in checks]})
    else:
        show(as_table(checks))
    if broken:
        raise UnavailableError(f"broken: {', '.join(broken)}; see the remedies in the output")
