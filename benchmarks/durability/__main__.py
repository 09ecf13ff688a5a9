"""Kill, interrupt and fail runs, and check that nothing is lost: python -m benchmarks.durability [--kills 100] [--signals 50]
[--parts kills,signals,faults,power] [--seed 0] [--out FILE.json]

kills : `kill -9` at random moments, most of them at a random call that changes a file of the run. After each kill, all files
    can be read. After one to three kills, the run is resumed to its end, and has the same bytes as an uninterrupted run
signals : SIGINT and SIGTERM, each at --signals random moments, half of them with an empty kernel cache. The exit code is 130 or
    143, there is no traceback, no file is torn, and the run can be resumed. The latency is the time until the process has ended
faults : each call that writes a file of a run fails in turn, once or with all later ones. The run ends with a message of one
    line, the best weights are where the message says, and the run can be resumed
power : the folders that a power failure after each call may leave. The run can be resumed from its newest checkpoint

The exit status is 1 if anything was lost. The results are written to --out, which keeps the parts that are not repeated.
"""

from __future__ import annotations

import argparse
import errno
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.arguments import names_in
from benchmarks.durability.faults import ERRORS, REMOVING, WRITING, fail_each
from benchmarks.durability.moments import Campaign
from benchmarks.durability.power import check_state, record
from benchmarks.durability.trials import quick_runs, trials
from fastmlp.bench.machine import PACKAGES, machine
from fastmlp.engines import installed_versions
from fastmlp.files import read_json, write_json

Part = tuple[dict[str, Any], list[str]]  # the result of a part, and what was lost


def inject_faults(folder: Path, options: argparse.Namespace) -> Part:
    """Fail each call of each trial with each error, once and persistently."""
    rows: list[dict[str, Any]] = []
    wrong: list[str] = []
    with quick_runs():
        for trial in trials(folder).values():
            for code in ERRORS:
                for persistent, names in ((False, WRITING), (True, WRITING), (False, REMOVING)):
                    outcomes = list(fail_each(trial, folder / "faults" / "run", code, persistent, names))
                    wrong += [line for outcome in outcomes for line in outcome.wrong]
                    failed = sum(bool(outcome.message) for outcome in outcomes)
                    row = {"run": trial.name, "error": errno.errorcode[code], "persistent": persistent, "calls": list(names)}
                    rows.append(row | {"faults": len(outcomes), "runs_that_failed": failed})
                    print(rows[-1], flush=True)
    return {"faults": sum(row["faults"] for row in rows), "rows": rows}, wrong


def fail_power(folder: Path, options: argparse.Namespace) -> Part:
    """Check all states that a power failure may leave of each trial."""
    rows: list[dict[str, Any]] = []
    wrong: list[str] = []
    with quick_runs():
        for trial in trials(folder).values():
            states = record(trial, folder / "power" / "run", options.seed)
            wrong += [line for state in states for line in check_state(trial, folder / "power" / "run", state)]
            rows.append({"run": trial.name, "states": len(states), "calls": len({state.call for state in states})})
            print(rows[-1], flush=True)
    return {"states": sum(row["states"] for row in rows), "rows": rows}, wrong


def kill(folder: Path, options: argparse.Namespace) -> Part:
    """Kill runs at random moments."""
    campaign = Campaign(folder, random.Random(options.seed))
    return campaign.kill(options.kills), campaign.wrong


def interrupt(folder: Path, options: argparse.Namespace) -> Part:
    """Send signals to runs at random moments."""
    campaign = Campaign(folder, random.Random(options.seed))
    return campaign.interrupt(options.signals), campaign.wrong


PARTS = {"kills": kill, "signals": interrupt, "faults": inject_faults, "power": fail_power}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--signals", type=int, default=50)
    parser.add_argument("--parts", type=names_in(PARTS), default=list(PARTS), metavar="NAMES")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    found = read_json(options.out) if options.out and options.out.exists() else {}
    lost: list[str] = []
    for name in options.parts:
        with tempfile.TemporaryDirectory() as folder:
            result, wrong = PARTS[name](Path(folder).resolve(), options)
        lost += wrong
        about = {"machine": machine(), "versions": installed_versions(PACKAGES), "seed": options.seed}
        found[name] = about | result | {"lost": wrong}
        if options.out:
            write_json(options.out, dict(sorted(found.items())))
    print("\n".join(lost) or "nothing was lost")
    if lost:
        sys.exit(1)


if __name__ == "__main__":
    main()
