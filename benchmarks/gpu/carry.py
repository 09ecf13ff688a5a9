"""Prepare a folder for a machine with a GPU that lacks packages, a compiler and a network.

    python -m benchmarks.gpu.carry [FOLDER]

The folder gets wheels for that machine's Python, all kernels that the check asks for (kernels.jsonl) compiled for its GPU, and
the data sets whose files are there (FASTMLP_DATA). It travels with the repository, and there one command does the rest:

    python3 benchmarks/gpu/start.py FOLDER --out gpu.json

NumPy, PyTorch, Numba and cuda-bindings are not carried: together they are larger than all else that may travel.
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

from benchmarks.cuda_build import parse_capability, told
from benchmarks.gpu import ROOT
from benchmarks.gpu.kernels import Asked, recorded
from fastmlp.data.download import data_folder, present
from fastmlp.data.named import DATASETS
from fastmlp.engines.cpu.threads import available_cores
from fastmlp.engines.cuda.compiler import Capability, compiled, entry_of, sources
from fastmlp.files import write_json

# What a machine with NumPy, PyTorch and Numba may lack of what the check imports; pip adds what these need themselves.
PACKAGES = ("msgspec", "tomli-w", "platformdirs", "threadpoolctl", "pytest", "hypothesis", "greenlet")
PYTHON = "3.12"
# Wheels for any of these are taken; pip takes a tag as it is, and not that of an older system.
SYSTEMS = ("manylinux_2_28_x86_64", "manylinux_2_24_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
DATA = ("fashion-mnist", "mnist")
LARGEST = 55 * 2**20  # bytes, with the repository


def carry_wheels(folder: Path, packages: Sequence[str] = PACKAGES) -> None:
    """Wheels of the packages and of what they need."""
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]
    command += ["--python-version", PYTHON, "--implementation", "cp", "--dest", str(folder)]
    command += [word for system in SYSTEMS for word in ("--platform", system)]
    subprocess.run([*command, *packages], check=True)


def compile_one(asked: Asked, capability: Capability) -> Path:
    """The file of a kernel, compiled now unless it is there."""
    what = asked.name, asked.kind, asked.shape(), capability
    compiled(*what)
    return entry_of(*what)


def carry_kernels(file: Path, asked: Sequence[Asked], capability: Capability) -> None:
    """All kernels in one archive: they are much alike, so together they are packed far smaller than each alone."""
    with ProcessPoolExecutor(available_cores(), multiprocessing.get_context("spawn")) as pool:
        paths = list(pool.map(compile_one, asked, [capability] * len(asked)))
    pack(file, paths)


def pack(file: Path, paths: Iterable[Path]) -> None:
    """Files in an archive, with no name of a folder; whoever unpacks it owns them."""
    with tarfile.open(file, "w:xz") as archive:
        for path in paths:
            archive.add(path, path.name)


def carry_data(folder: Path, names: Sequence[str] = DATA) -> list[str]:
    """The files of the data sets that are here; their names."""
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
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def repository_size() -> int:
    """Bytes of the files that git has."""
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
    asked = recorded()
    carry_kernels(folder / "kernels.tar.xz", asked, options.capability)
    about = {
        "capability": told(options.capability),
        "kernels": len(asked),
        "sources": sources(),
        "data": data,
        "python": PYTHON,
    }
    write_json(folder / "about.json", about)
    whole = size_of(folder) + repository_size()
    print(f"{folder}: {about}; {whole / 2**20:.1f} MiB with the repository")
    for name in set(DATA) - set(data):
        print(f"{name} is not here and is not carried: name its folder by FASTMLP_DATA")
    if whole > LARGEST:
        sys.exit(f"that is more than {LARGEST / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
