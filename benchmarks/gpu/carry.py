"""Prepare a folder for a GPU machine that has few packages, no kernel compiler and no network connection.

    python -m benchmarks.gpu.carry [FOLDER]

The folder contains wheels for that machine's Python, all kernels used by the check (kernels.jsonl) compiled for its GPU, and
the data sets that are available locally (FASTMLP_DATA). Copy it to the machine together with the repository, and run there:

    python3 benchmarks/gpu/start.py FOLDER --out gpu.json

NumPy, PyTorch, Numba and cuda-bindings are not packed: they would exceed the size limit of 55 MiB.
"""

from __future__ import annotations

import argparse
import gzip
import multiprocessing
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.cuda_build import format_capability, parse_capability
from benchmarks.gpu import ROOT
from benchmarks.gpu.kernels import KernelRequest, read_record
from fastmlp.data.download import data_folder, is_offline, present
from fastmlp.data.named import DATASETS
from fastmlp.engines.cpu.threads import available_cores
from fastmlp.engines.cuda.compiler import Capability, compiled, entry_of, sources
from fastmlp.errors import UnavailableError
from fastmlp.files import write_json

# Packages that the check imports, and that may be missing although NumPy, PyTorch and Numba are installed.
PACKAGES = ("msgspec", "tomli-w", "platformdirs", "threadpoolctl", "pytest", "hypothesis", "greenlet")
PYTHON = "3.12"
# Accepted platform tags. All are listed, since pip does not add the tags of older systems by itself.
SYSTEMS = ("manylinux_2_28_x86_64", "manylinux_2_24_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
DATA = ("fashion-mnist", "mnist")
LARGEST = 55 * 2**20  # bytes, including the repository


def carry_wheels(folder: Path, packages: Sequence[str] = PACKAGES) -> None:
    """Download wheels of the packages and their dependencies. Raise UnavailableError if FASTMLP_OFFLINE forbids it."""
    if is_offline():
        raise UnavailableError(f"FASTMLP_OFFLINE forbids downloading the wheels of {', '.join(packages)}; unset it")
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]
    command += ["--python-version", PYTHON, "--implementation", "cp", "--dest", str(folder)]
    command += [word for system in SYSTEMS for word in ("--platform", system)]
    subprocess.run([*command, *packages], check=True)


def compile_one(request: KernelRequest, capability: Capability) -> Path:
    """Compile a kernel unless it is in the cache; return the path of its file in the cache."""
    what = request.name, request.kind, request.shape(), capability
    compiled(*what)
    return entry_of(*what)


def carry_kernels(file: Path, requests: Sequence[KernelRequest], capability: Capability) -> None:
    """Compile and pack all kernels. They are similar, so one archive is far smaller than separately compressed files."""
    with ProcessPoolExecutor(available_cores(), multiprocessing.get_context("spawn")) as pool:
        paths = list(pool.map(compile_one, requests, [capability] * len(requests)))
    pack(file, paths)


def pack(file: Path, paths: Iterable[Path]) -> None:
    """Write the files to an archive, without the names of their folders."""
    with tarfile.open(file, "w:xz") as archive:
        for path in paths:
            archive.add(path, path.name)


def carry_data(folder: Path, names: Sequence[str] = DATA) -> list[str]:
    """Copy all available data sets, compressed like the published files; return the names of the copied data sets."""
    found = []
    for name in names:
        entry = DATASETS[name]
        files = {file.name: present(data_folder() / entry.folder, file) for file in entry.files}
        if None not in files.values():
            found.append(name)
            (folder / entry.folder).mkdir(parents=True)
            for packed, path in files.items():
                content = Path(str(path)).read_bytes()
                unpacked = not str(path).endswith(".gz")
                (folder / entry.folder / packed).write_bytes(gzip.compress(content) if unpacked else content)
    folder.mkdir(exist_ok=True)
    return found


def size_of(folder: Path) -> int:
    """Return the total size of all files below a folder, in bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def repository_size() -> int:
    """Return the total size of all files tracked by git, in bytes."""
    run = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return sum((ROOT / name).stat().st_size for name in run.stdout.split("\0") if name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("carry"))
    parser.add_argument("--capability", type=parse_capability, default=(9, 0), metavar="9.0")
    options = parser.parse_args()
    folder: Path = options.folder
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    carry_wheels(folder / "wheels")
    data = carry_data(folder / "data")
    requests = read_record()
    carry_kernels(folder / "kernels.tar.xz", requests, options.capability)
    about = {
        "capability": format_capability(options.capability),
        "kernels": len(requests),
        "sources": sources(),
        "data": data,
        "python": PYTHON,
    }
    write_json(folder / "about.json", about)
    whole = size_of(folder) + repository_size()
    print(f"{folder}: {about}; {whole / 2**20:.1f} MiB with the repository")
    for name in set(DATA) - set(data):
        print(f"{name} was not found, so it is not packed; set FASTMLP_DATA to the folder that contains it")
    if whole > LARGEST:
        sys.exit(f"the total is more than {LARGEST / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
