"""Kill -9, SIGINT and SIGTERM at random moments of runs in other processes: `kill_runs` and `interrupt_runs`."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.durability.child import PHASES, SAVING, Status
from benchmarks.durability.trials import Contents, contents, damaged, differences
from fastmlp.training.checkpoints.file import files_of, read_newest

ROOT = Path(__file__).resolve().parents[2]  # root of the repository
PATIENCE = 60.0  # seconds after which a process that should have ended is killed
# Options of the runs, which take two to four seconds. Together, they use most of what a resumed run has to restore.
RUNS = {
    "adam, cosine": "--dropout 0.2 --schedule cosine --lr-warmup 2 --epochs 80 --patience 0 --save-every 5 --predictions "
    "--per-class-every 3 --checkpoint-seconds 0",
    "momentum, plateau": "--optimizer momentum --schedule plateau --lr-patience 2 --patience 40 --epochs 200 --flip 0.5 "
    "--per-class-every 10 --checkpoint-seconds 0.05 --seed 1",
    "rmsprop, validation within epochs": "--optimizer rmsprop --l2 1e-4 --stratify --class-weight balanced --val-steps 7 "
    "--per-class-every 3 --epochs 50 --patience 0 --save-every 10 --max-grad-norm 1 --checkpoint-seconds 0",
}
# Fractions of the runs that are killed at a random call, of these at a call while a checkpoint or the result is saved, and of
# the others with an empty kernel cache.
AT_CALL, WHILE_SAVING, COLD = 0.6, 0.7, 0.1
MOST_KILLS = 3  # of the same run
# Moments for which latencies are reported, by phase. A run that is trained saves its result after a signal.
MOMENTS = {"compilation": "while a kernel is compiled or loaded", "training": "during the training"}
MOMENTS["checkpoint"] = MOMENTS["training"]


class Ended(NamedTuple):
    """How a process ended.

    code : exit code, or the negative number of the signal that killed it
    status : the last one that it reported; at the time of the signal, if one was sent
    seconds : from the signal to the end of the process; from its start, if no signal was sent
    """

    code: int
    status: Status
    stderr: str
    seconds: float


def run_child(
    arguments: Sequence[str | Path],
    cache: Path,
    *,
    watched: Path | None = None,
    call: tuple[int, str] = (0, "before"),
    number: int = 0,
    delay: float = 0.0,
) -> Ended:
    """Run a command in a child (see child.py), and send it a signal.

    Parameters
    ----------
    cache : folder of the kernel cache
    watched : folder in which calls that change files are counted
    call : number and part of the call at which the child kills itself
    number : the signal, 0 for none; it is not sent if the process has ended before
    delay : seconds between the start of `fastmlp.commands.main` and the signal
    """
    environment = os.environ | {"FASTMLP_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryFile() as status, tempfile.TemporaryFile() as stderr:
        child = [sys.executable, "-m", "benchmarks.durability.child", status.fileno(), watched or "-", *call, *arguments]
        began = time.monotonic()
        process = subprocess.Popen(
            list(map(str, child)),
            cwd=ROOT,
            env=environment,
            pass_fds=[status.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
        timer = threading.Timer(PATIENCE + delay, process.kill)
        timer.start()
        try:
            found = None
            if number:
                while Status.read(status.fileno()).phase == PHASES[0] and process.poll() is None:
                    time.sleep(0.001)
                time.sleep(delay)
                if process.poll() is None:
                    found, began = Status.read(status.fileno()), time.monotonic()
                    process.send_signal(number)
            code = process.wait()
            seconds = time.monotonic() - began
        finally:
            timer.cancel()
            process.kill()
        stderr.seek(0)
        text = stderr.read().decode(errors="replace")
        return Ended(code, found or Status.read(status.fileno()), text, seconds)


class Reference(NamedTuple):
    """An uninterrupted run.

    contents : its files
    calls, saving_calls : numbers of calls that change them, see child.py
    seconds, cold_seconds : its duration with a full and with an empty kernel cache
    """

    contents: Contents
    calls: int
    saving_calls: int
    seconds: float
    cold_seconds: float


class Campaign:
    """Runs that are killed and interrupted, in `folder`, at moments that `draw` chooses.

    `runs` has the options of the runs by name, and `wrong` a message for everything that was lost.
    """

    def __init__(self, folder: Path, draw: random.Random, runs: Mapping[str, str] = RUNS) -> None:
        self.folder, self.draw, self.runs = folder, draw, runs
        self.cache = folder / "cache"
        self.numbers = itertools.count()
        self.wrong: list[str] = []
        self.references = {name: self.reference(name) for name in runs}

    def reference(self, name: str) -> Reference:
        """Run twice without an interruption, first with an empty cache, then while calls are counted."""
        first, second, cache = self.new_folder(), self.new_folder(), self.new_folder()
        cold = run_child(self.command(name, first), cache)
        warm = run_child(self.command(name, second), cache, watched=second)
        wrong = differences(second, contents(first))
        if cold.code or warm.code or wrong:
            raise AssertionError(f"a run without an interruption failed: {cold}, {warm}, {wrong}")
        if cache.exists():
            shutil.copytree(cache, self.cache, dirs_exist_ok=True)
        return Reference(contents(first), warm.status.calls, warm.status.saving_calls, warm.seconds, cold.seconds)

    def command(self, name: str, run: Path) -> list[str | Path]:
        """Return the command of a new run."""
        return ["train", *self.runs[name].split(), "-q", "--out", run]

    def continuation(self, name: str, run: Path) -> list[str | Path]:
        """Return the command that continues a run, or that starts it again if it was killed before it had settings."""
        return ["train", "--resume", run, "-q"] if (run / "config.toml").exists() else [*self.command(name, run), "--force"]

    def new_folder(self) -> Path:
        """Return the path of a folder that does not exist."""
        return self.folder / f"{next(self.numbers)}" / "run"

    def check(self, ended: Ended, code: int, moment: str, wrong: Sequence[str]) -> None:
        """Note an unexpected exit code, a traceback, and `wrong`."""
        found = [*wrong]
        if ended.code != code:
            found.append(f"exit code {ended.code} instead of {code}; stderr: {ended.stderr!r}")
        if "Traceback" in ended.stderr:
            found.append(f"traceback: {ended.stderr!r}")
        self.wrong += [f"{moment}: {line}" for line in found]
        for line in found:
            print(f"{moment}: {line}", flush=True)

    def finish(self, run: Path, cache: Path, name: str, moment: str) -> None:
        """Continue a run to its end, and compare its files with those of an uninterrupted one."""
        ended = run_child(self.continuation(name, run), cache)
        wrong = differences(run, self.references[name].contents)
        self.check(ended, 0, f"continued after {moment}", wrong)

    # ------------------------------------------------------------------------------------------------ kill -9

    def kill(self, count: int) -> dict[str, Any]:
        """Kill runs `count` times, and return how often in which phase."""
        kills: list[dict[str, Any]] = []
        for name in itertools.cycle(self.runs):
            if len(kills) >= count:
                break
            run, cache = self.new_folder(), self.cache
            at_call, saving = self.draw.random() < AT_CALL, self.draw.random() < WHILE_SAVING
            if not at_call and self.draw.random() < COLD:
                cache = self.new_folder()
            for link in range(self.draw.choice((1, 1, 2, MOST_KILLS))):
                part = self.draw.choice(("before", "half", "after")) if at_call else ""
                row = self.kill_once(run, cache, name, self.draw.random() / (link + 1), part, saving=saving)
                if row is None:  # it ended before
                    break
                kills.append({"kills_before": link} | row)
                print(f"kill {len(kills)}: {kills[-1]}", flush=True)
            self.finish(run, cache, name, f"kill {len(kills)}")
            shutil.rmtree(run.parent, ignore_errors=True)
        return summary_of_kills(kills)

    def kill_once(
        self, run: Path, cache: Path, name: str, fraction: float, part: str, *, saving: bool = False
    ) -> dict[str, Any] | None:
        """Start or resume a run, and kill it; return None if it ended before.

        fraction : of the calls or of the time of an uninterrupted run
        part : of the call, see child.py; "" to kill it at a time
        saving : whether the call is one that saves a checkpoint or the result
        """
        reference, arguments = self.references[name], self.continuation(name, run)
        if part:
            number = -1 - int(fraction * reference.saving_calls) if saving else 1 + int(fraction * reference.calls)
            ended = run_child(arguments, cache, watched=run, call=(number, part))
        else:
            seconds = reference.seconds if cache == self.cache else reference.cold_seconds
            ended = run_child(arguments, cache, number=signal.SIGKILL, delay=fraction * seconds)
        if ended.code == 0:
            return None
        moment = f"{name}, {'resumed' if '--resume' in arguments else 'new'}, killed in phase {ended.status.phase}"
        wrong = damaged(run, torn_logs=True, temporaries=True) if run.exists() else []
        self.check(ended, -signal.SIGKILL, moment, wrong)
        at = "a call" if part else "a random time"
        return {"run": name, "at": at, "phase": ended.status.phase, "repeated": epochs_to_repeat(run)}

    # ------------------------------------------------------------------------------------------------ SIGINT and SIGTERM

    def interrupt(self, count: int) -> dict[str, Any]:
        """Interrupt `count` runs with SIGINT and `count` with SIGTERM, half of them with an empty kernel cache."""
        rows: list[dict[str, Any]] = []
        names = itertools.cycle(self.runs)
        kinds = [(number, cold) for cold in (False, True) for number in (signal.SIGINT, signal.SIGTERM)]
        for number, cold in itertools.islice(itertools.cycle(kinds), 2 * count):
            row = None
            while row is None:  # the process ended before the signal
                row = self.interrupt_once(next(names), number, cold)
            rows.append(row)
            print(f"signal {len(rows)}: {row}", flush=True)
        return summary_of_signals(rows)

    def interrupt_once(self, name: str, number: signal.Signals, cold: bool) -> dict[str, Any] | None:
        """Interrupt a run at a random time; return None if it ended before."""
        run, reference = self.new_folder(), self.references[name]
        cache = self.new_folder() if cold else self.cache
        delay = self.draw.uniform(0, reference.cold_seconds if cold else reference.seconds)
        ended = run_child(self.command(name, run), cache, number=number, delay=delay)
        if ended.code == 0 and ended.status.phase == "end":
            return None
        moment = f"{name}, {number.name} in phase {ended.status.phase}"
        wrong = damaged(run) if run.exists() else []
        wrong += [f"{path} is left over" for path in cache.rglob("*.tmp")]
        if run.exists() and not any(run.iterdir()):
            wrong.append("the folder of the run is empty")
        # Python resets the handlers when it ends. A process that a signal kills then has the same exit code for a shell.
        code = -number if ended.status.phase == "end" and ended.code == -number else 128 + number
        self.check(ended, code, moment, wrong)
        self.finish(run, self.cache, name, moment)
        shutil.rmtree(run.parent, ignore_errors=True)
        row = {"run": name, "signal": number.name, "cold": cold, "phase": ended.status.phase}
        return row | {"latency": round(ended.seconds, 3)}


def epochs_to_repeat(run: Path) -> int:
    """Return the number of epochs of a killed run that were logged after its newest checkpoint."""
    metrics = run / "metrics.jsonl"
    done = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
    return done - len(read_newest(files_of(run)).checkpoint.history) if run.exists() and files_of(run) else done


def summary_of_kills(kills: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the numbers of kills by phase, and of the epochs that had to be repeated."""
    phases = Counter(f"{row['phase']}, at {row['at']}" for row in kills)
    return {
        "kills": len(kills),
        "while_saving": sum(row["phase"] in SAVING and row["at"] == "a call" for row in kills),
        "of_resumed_runs": sum(row["kills_before"] > 0 for row in kills),
        "phases": dict(sorted(phases.items())),
        "repeated_epochs": dict(sorted(Counter(row["repeated"] for row in kills).items())),
    }


def summary_of_signals(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the numbers of signals by phase, and the latencies in seconds."""
    phases = Counter(f"{row['signal']}, {row['phase']}{', empty cache' * row['cold']}" for row in rows)
    latencies: dict[str, list[float]] = {}
    for row in rows:
        latencies.setdefault(MOMENTS.get(row["phase"], "at other moments"), []).append(row["latency"])
    return {
        "signals": len(rows),
        "phases": dict(sorted(phases.items())),
        "latency": {moment: latency(seconds) for moment, seconds in sorted(latencies.items())},
    }


def latency(seconds: list[float]) -> dict[str, float]:
    """Return the number, the median and the largest of latencies."""
    return {"signals": len(seconds), "median": round(statistics.median(seconds), 3), "most": max(seconds)}
