"""The number of threads of an estimator inside joblib's workers."""

from __future__ import annotations

import os
import threading

from joblib.parallel import get_active_backend

LIMITS = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")  # set by joblib in its worker processes to cores // workers, or by the user


def default_threads(given: int | None) -> int | None:
    """Return the number of threads of an engine: `given`, or such that workers times threads do not exceed the cores.

    None lets the engine choose. A worker thread of joblib's backend "threading" uses one thread, because the backend does not
    tell how many workers there are.
    """
    if given is not None:
        return given
    if threading.current_thread() is not threading.main_thread() and get_active_backend()[0].nesting_level:
        return 1
    limits = [int(os.environ[name]) for name in LIMITS if os.environ.get(name, "").isdecimal()]
    return max(1, min(limits)) if limits else None
