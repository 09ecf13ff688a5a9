"""The one command on a machine with a GPU: python3 benchmarks/gpu/start.py FOLDER [--out gpu.json] [options of check.py]

FOLDER is what carry.py made. The machine may lack packages, a compiler for kernels and a network. It needs Python 3.12, NumPy,
Numba and cuda-bindings (part of numba-cuda; also installed with PyTorch). What was carried is unpacked into a new folder, since
kernels in a folder of another owner are not trusted; then check.py runs, and its exit status is this one's.

Standard library alone: this file runs before anything is installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def unpack(carried: Path, folder: Path) -> dict[str, str]:
    """Unpack what was carried; the environment that makes use of it."""
    site, kernels = folder / "site", folder / "kernels"
    site.mkdir()
    for wheel in sorted((carried / "wheels").glob("*.whl")):
        with zipfile.ZipFile(wheel) as packed:  # a wheel of this kind is its files; pip may be missing
            packed.extractall(site)
    kernels.mkdir(mode=0o700)
    with tarfile.open(carried / "kernels.tar.xz") as packed:
        packed.extractall(kernels, filter="data")
    path = os.pathsep.join([str(ROOT), str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {"PYTHONPATH": path, "FASTMLP_CACHE_DIR": str(kernels), "FASTMLP_DATA": str((carried / "data").resolve())}


def main() -> int:
    """Unpack and run; the exit status of check.py."""
    if len(sys.argv) < 2 or not (Path(sys.argv[1]) / "kernels.tar.xz").exists():
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory(prefix="fastmlp-check-") as folder:
        environment = os.environ | unpack(Path(sys.argv[1]), Path(folder)) | {"PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "benchmarks.gpu.check", *sys.argv[2:]]
        return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
