"""Output streams, error messages and exit codes that all commands share. options.py defines their options."""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

import click

from fastmlp.commands import SIGNAL_CODE
from fastmlp.commands.common.offline import forbid_connections
from fastmlp.errors import ConfigError, DataError, printable

Function = Callable[..., Any]

GC_THRESHOLD = 200_000  # allocations minus deallocations that trigger a garbage collection
QUIET, VERBOSE, FLAGS = "fastmlp.quiet", "fastmlp.verbose", "fastmlp.flags"  # keys of ctx.meta, shared by nested contexts

# ------------------------------------------------------------------------------------------------ streams


def note(text: str) -> None:
    """Write a line to stderr, with control characters escaped, see `note_lines`."""
    note_lines(printable(text))


def note_lines(text: str) -> None:
    """Write lines to stderr, in which control characters other than line breaks are escaped.

    A closed stream is ignored, so that the results of a finished training run are still saved.
    """
    with contextlib.suppress(OSError):
        click.echo("\n".join(map(printable, text.split("\n"))), err=True)


def say(text: str) -> None:
    """Write a progress message to stderr, unless --quiet is given."""
    if not is_quiet():
        note(text)


def resume_hint(folder: str) -> str:
    """Return a message with the command that resumes a run.

    >>> resume_hint("runs/a b")
    "to resume the run: `fastmlp train --resume 'runs/a b'`"
    """
    return f"to resume the run: `{shlex.join(['fastmlp', 'train', '--resume', folder])}`"


def resolved(run: str) -> str:
    """Return the path of a run; RUNS/latest is replaced with the newest run in the folder RUNS, which is written to stderr."""
    from fastmlp.experiments.folder import resolve_run

    path = str(resolve_run(run))
    if path != run:
        say(f"{run}: {path}")
    return path


@contextlib.contextmanager
def writing_results() -> Iterator[None]:
    """Context manager for writing to stdout: ignore a closed pipe (`| head`), raise DataError for a full disk."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # otherwise the flush at exit would fail again
        if not isinstance(error, BrokenPipeError):
            raise DataError(f"the result cannot be written to stdout: {error.strerror}") from error


def show(text: str | bytes) -> None:
    """Write a result to stdout. Names from files in a text must have been escaped with `errors.printable`."""
    with writing_results():
        click.echo(text, nl=isinstance(text, str))


def show_json(value: Mapping[str, Any]) -> None:
    """Write a result to stdout as one JSON object, always encoded as UTF-8."""
    from fastmlp.files import json_bytes

    show(json_bytes(value, indent=2))


def show_figures(result: Mapping[str, Any], as_json: bool) -> None:
    """Write the metrics of a run or of an evaluation to stdout, as a JSON object or as a table."""
    from fastmlp.reports.text import print_result

    if as_json:
        show_json(result)
        return
    names = {"data": result["data"]["name"], "network": result["network"]["label"]}
    if "extracted" in result["data"]:
        names["cnn"] = result["data"]["extracted"]["cnn"]
    with writing_results():
        print_result({**result, **names})


def show_reports(result: Mapping[str, Any]) -> None:
    """Write the classification report of each evaluated split to stdout; raise ConfigError for a regression model.

    On a terminal, at most `DENSE_CLASSES` classes are listed.
    """
    from fastmlp.reports.text import DENSE_CLASSES, classification_report

    parts = {name: result[name] for name in ("test", "validation", "train") if result.get(name)}
    if not all("per_class" in figures for figures in parts.values()):
        raise ConfigError("a classification report needs a classifier, but this is a regression model", settings=("report",))
    head, most = "{}\n" if len(parts) > 1 else "", DENSE_CLASSES if sys.stdout.isatty() else None
    reports = [head.format(name) + classification_report(figures, most=most) for name, figures in parts.items()]
    show("\n".join(reports).removesuffix("\n"))


def show_files(files: list[Any], as_json: bool) -> None:
    """Write the status of each file to stdout, as one JSON object or as one line per file."""
    if as_json:
        show_json({"files": [row._asdict() for row in files]})
    elif files:
        show("\n".join(f"{row.status:<8} {printable(row.file)}" for row in files))


def show_extraction(result: Mapping[str, Any], as_json: bool) -> None:
    """Write the result of a feature extraction to stdout, as a JSON object or as the table of the convolutional network."""
    from fastmlp.reports.text import print_result

    if as_json:
        show_json(result)
        return
    names = ("test", "validation", "train", "epochs", "best_epoch")
    shown = {name: result["cnn"][name] for name in names if name in result["cnn"]}
    with writing_results():
        print_result(
            {
                "data": result["images"]["name"],
                "settings": result["settings"],
                **shown,
                **({"features": result["out"]} if result["out"] else {}),
            }
        )


# ------------------------------------------------------------------------------------------------ errors


def flag(setting: str) -> str:
    """Return the command-line flag of a setting.

    >>> flag("batch_size")
    '--batch-size'
    """
    return "--" + setting.replace("_", "-")


def fail(ctx: click.Context, error: Any) -> None:
    """Write an error as one line that ends with the flags to change, and exit.

    With -v -v or FASTMLP_DEBUG, write the traceback before it.
    """
    if ctx.meta.get(VERBOSE, 0) > 1 or os.environ.get("FASTMLP_DEBUG"):
        note_lines(traceback.format_exc())
    settings = [flag(name) for name in getattr(error, "settings", ())]
    flags = [name for name in settings if name in ctx.meta.get(FLAGS, settings)]  # a command may lack some of the flags
    note("fastmlp: error: " + " ".join(str(error).splitlines()) + (f" [{', '.join(flags)}]" if flags else ""))
    ctx.exit(error.exit_code)


def end_by_signal(number: int) -> None:
    """Exit with the code of the signal that interrupted the command; do nothing if the number is 0 (no signal)."""
    if number:
        click.get_current_context().exit(SIGNAL_CODE + number)


def warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Write a warning to stderr without its source line; replaces `warnings.showwarning`."""
    note(f"fastmlp: warning: {' '.join(str(message).splitlines())}")


def prepare_process() -> None:
    """Configure streams, connections, matplotlib, warnings and garbage collection. Called once, before the program runs."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file name may not be encodable
    forbid_connections()
    # The kernel of a notebook exports the name of its backend, with which matplotlib cannot be imported in other environments.
    os.environ["MPLBACKEND"] = "agg"
    warnings.showwarning = warn
    # Objects created by imports are never freed. Scanning them for garbage took an eighth of the time of a short run.
    gc.set_threshold(GC_THRESHOLD)
    atexit.register(freeze)


def freeze() -> None:
    """Skip the garbage collection at exit, unless PyTorch was imported, because PyTorch needs an orderly shutdown."""
    if "torch" not in sys.modules:
        gc.freeze()


# ------------------------------------------------------------------------------------------------ options


def is_quiet() -> bool:
    return bool(click.get_current_context().meta.get(QUIET))


def is_verbose() -> bool:
    return bool(click.get_current_context().meta.get(VERBOSE))


def given_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that are given on the command line, without those set by environment variables or by default."""
    source = click.get_current_context().get_parameter_source
    return {name: value for name, value in flags.items() if source(name) == click.core.ParameterSource.COMMANDLINE}
