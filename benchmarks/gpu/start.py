"""Run the check on a machine with a GPU: python3 benchmarks/gpu/start.py FOLDER [--out gpu.json] [options of check.py]

FOLDER is the folder made by carry.py. The machine needs Python 3.12, NumPy, Numba and cuda-bindings (a dependency of
numba-cuda and of PyTorch). It needs neither other packages nor a kernel compiler nor a network connection. The packed files
are extracted to a new folder, since fastmlp does not load kernels from a folder that belongs to another user. Then check.py
runs, and its exit status is returned.

This script uses only the standard library, since it runs before the packed packages are available.
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
    """Extract the packed files; return the environment variables that make them available."""
    site, kernels = folder / "site", folder / "kernels"
    site.mkdir()
    for wheel in sorted((carried / "wheels").glob("*.whl")):
        with zipfile.ZipFile(wheel) as packed:  # pip may be missing, but extracting these wheels suffices
            packed.extractall(site)
    kernels.mkdir(mode=0o700)
    with tarfile.open(carried / "kernels.tar.xz") as packed:
        packed.extractall(kernels, filter="data")
    path = os.pathsep.join([str(ROOT), str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {"PYTHONPATH": path, "FASTMLP_CACHE_DIR": str(kernels), "FASTMLP_DATA": str((carried / "data").resolve())}


def main() -> int:
    """Extract the files and run check.py; return its exit status."""
    if len(sys.argv) < 2 or not (Path(sys.argv[1]) / "kernels.tar.xz").exists():
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory(prefix="fastmlp-check-") as folder:
        environment = os.environ | unpack(Path(sys.argv[1]), Path(folder)) | {"PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "benchmarks.gpu.check", *sys.argv[2:]]
        return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
