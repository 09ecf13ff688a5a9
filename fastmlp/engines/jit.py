"""Check of whether Numba's just-in-time (JIT) compiler is enabled.

The environment variable NUMBA_DISABLE_JIT disables it, for example to debug Python functions or to measure their coverage.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from fastmlp.errors import UnavailableError

REMEDY = "unset the environment variable NUMBA_DISABLE_JIT, or remove disable_jit from .numba_config.yaml"


class JitDisabledError(UnavailableError):
    """Numba's JIT compiler is needed, but it is disabled."""


def jit_is_disabled() -> bool:
    """Return whether Numba's JIT compiler is disabled.

    Numba is not imported for this, because the import takes long. Before the import, only the environment variable is known.
    """
    config: Any = sys.modules.get("numba.core.config")
    if hasattr(config, "DISABLE_JIT"):
        return bool(config.DISABLE_JIT)
    try:
        return bool(int(os.environ.get("NUMBA_DISABLE_JIT", "0")))
    except ValueError:  # Numba ignores such a value
        return False


def check_jit(what: str) -> None:
    """Import Numba, and raise JitDisabledError if its JIT compiler is disabled. `what` is the part that needs the compiler."""
    from numba.core import config

    if config.DISABLE_JIT:  # type: ignore[attr-defined]
        raise JitDisabledError(f"{what} needs Numba's JIT compiler, which is disabled: {REMEDY}")
