"""Number of threads of an estimator, which is reduced in the workers of joblib."""

from __future__ import annotations

import os
import threading

from joblib.parallel import get_active_backend

LIMITS = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")  # joblib sets these in worker processes to cores // workers


def default_threads(given: int | None) -> int | None:
    """Return `given`, or if it is None, a limit that avoids oversubscription of the cores by the workers of joblib.

    If one of the variables in `LIMITS` is set, by joblib or by the user, the limit is its value. In a worker thread of
    joblib's backend "threading", the limit is 1, because the number of workers is not known there. Otherwise the result is
    None, which lets the engine choose.
    """
    if given is not None:
        return given
    if threading.current_thread() is not threading.main_thread() and get_active_backend()[0].nesting_level:
        return 1
    limits = [int(os.environ[name]) for name in LIMITS if os.environ.get(name, "").isdecimal()]
    return max(1, min(limits)) if limits else None
