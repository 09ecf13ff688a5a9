"""Run the check on a machine with a GPU: python3 benchmarks/gpu/start.py FOLDER [--out gpu.json] [options of check.py]

FOLDER was made by carry.py. The machine may lack packages, a kernel compiler and a network. It needs Python 3.12, NumPy, Numba
and cuda-bindings (a dependency of numba-cuda and of PyTorch). The packed files are extracted to a new folder, since kernels in
a folder owned by another user are not trusted. Then check.py runs; its exit status is returned.

Uses the standard library only, since it runs before anything is installed.
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
    """Extract the packed files; return the environment variables for using them."""
    site, kernels = folder / "site", folder / "kernels"
    site.mkdir()
    for wheel in sorted((carried / "wheels").glob("*.whl")):
        with zipfile.ZipFile(wheel) as packed:  # these wheels need no installation steps; pip may be missing
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
