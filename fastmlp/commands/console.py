"""What all commands of the program share: streams, errors and exit codes. Options are in options.py."""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any, TextIO

import click

from fastmlp.errors import ConfigError, DataError, UnavailableError

Function = Callable[..., Any]

REPORT = "fastmlp: this is a bug in fastmlp; please report it with the lines above and with `fastmlp doctor`"
SIGNAL_CODE = 128  # plus the signal's number: the exit code of a program that a signal ended
GARBAGE = 200_000  # objects made and not deleted before Python looks for cycles among them
QUIET, VERBOSE = "fastmlp.quiet", "fastmlp.verbose"  # keys of ctx.meta, which all contexts of a call share

# ------------------------------------------------------------------------------------------------ streams


def note(text: str) -> None:
    """A line for a person, on stderr. A stream that is gone must not cost a finished training."""
    with contextlib.suppress(OSError):
        click.echo(text, err=True)


def say(text: str) -> None:
    """A line on what is being done; nothing with --quiet."""
    if not is_quiet():
        note(text)


@contextlib.contextmanager
def writing_results() -> Iterator[None]:
    """Writing to stdout: a reader that has gone away (`| head`) is no error, a full disk is one."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # what is left in buffers must not fail again at the end
        if not isinstance(error, BrokenPipeError):
            raise DataError(f"the result cannot be written to stdout: {error.strerror}") from error


def show(text: str | bytes) -> None:
    """A result, on stdout."""
    with writing_results():
        click.echo(text, nl=isinstance(text, str))


def show_json(value: Mapping[str, Any]) -> None:
    """A result as one JSON object, in UTF-8 whatever the terminal's encoding."""
    from fastmlp.files import json_bytes

    show(json_bytes(value, indent=2))


def show_figures(result: Mapping[str, Any], as_json: bool) -> None:
    """The figures of a run or of an evaluation: an object, or a table."""
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
    """The classification report of each part that was measured."""
    from fastmlp.reports.text import classification_report

    parts = {name: result[name] for name in ("test", "validation", "train") if result.get(name)}
    if not all("per_class" in figures for figures in parts.values()):
        raise ConfigError("a classification report is of classes, but this model predicts values; leave --report out")
    head = "{}\n" if len(parts) > 1 else ""
    show("\n".join(head.format(name) + classification_report(figures) for name, figures in parts.items()).removesuffix("\n"))


def show_files(files: list[Any], as_json: bool) -> None:
    """The state of files: an object, or a line each."""
    if as_json:
        show_json({"files": [row._asdict() for row in files]})
    elif files:
        show("\n".join(f"{row.status:<8} {row.file}" for row in files))


def show_extraction(result: Mapping[str, Any], as_json: bool) -> None:
    """What `extract` has made: an object, or a few lines."""
    if as_json:
        show_json(result)
        return
    figures = result["cnn"]
    shown = {"features": result["out"]} if result["out"] else {}
    shown |= {"epochs": f"{figures['epochs']} (best {figures['best_epoch']})"}
    shown |= {f"{part} accuracy": f"{figures[part]['accuracy']:.4f}" for part in ("validation", "test") if part in figures}
    show("\n".join(f"{name:<20}{value}" for name, value in shown.items()))


# ------------------------------------------------------------------------------------------------ the program


class Program(click.Group):
    """The commands; what they raise becomes a line on stderr and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # Click reports these itself
        except KeyboardInterrupt:
            note("fastmlp: interrupted")
            ctx.exit(SIGNAL_CODE + signal.SIGINT)
        except MemoryError as error:
            fail(ctx, UnavailableError(f"not enough memory: {error}; take smaller --hidden or --batch-size"))
        except Exception as error:
            if isinstance(getattr(error, "exit_code", None), int):  # FastMLPError, and what fastmlp.cnn raises on purpose
                fail(ctx, error)
            note(f"{traceback.format_exc()}{REPORT}")
            ctx.exit(1)


def flag(setting: str) -> str:
    """The flag of a setting.

    >>> flag("batch_size")
    '--batch-size'
    """
    return "--" + setting.replace("_", "-")


def fail(ctx: click.Context, error: Any) -> None:
    """One line and the exit code; with -v -v or FASTMLP_DEBUG also the way to it."""
    if ctx.meta.get(VERBOSE, 0) > 1 or os.environ.get("FASTMLP_DEBUG"):
        note(traceback.format_exc())
    flags = ", ".join(map(flag, getattr(error, "settings", ())))
    note("fastmlp: error: " + " ".join(str(error).splitlines()) + (f" [{flags}]" if flags else ""))
    ctx.exit(error.exit_code)


def end_by_signal(number: int) -> None:
    """Leave a command whose work a signal cut short."""
    if number:
        click.get_current_context().exit(SIGNAL_CODE + number)


def terminate(number: int, frame: FrameType | None) -> None:
    """Handler of SIGTERM: an exception, so that no temporary file is left behind."""
    sys.exit(SIGNAL_CODE + number)


def warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Stands in for `warnings.showwarning`: a user needs the words, not the line of code."""
    note(f"fastmlp: warning: {message}")


def prepare_process() -> None:
    """What is done to the process as a whole, once, before the program runs."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name in another encoding must not end it
    warnings.showwarning = warn
    if hasattr(signal, "SIGTERM"):
        signal.signal(signal.SIGTERM, terminate)
    # What imports make stays to the end; looking for garbage in it, then and at the end, took an eighth of a short run.
    gc.set_threshold(GARBAGE)
    atexit.register(freeze)


def freeze() -> None:
    """Leave what is in memory to the system; but PyTorch's libraries complain of what is not taken down in order."""
    if "torch" not in sys.modules:
        gc.freeze()


# ------------------------------------------------------------------------------------------------ options


def is_quiet() -> bool:
    return bool(click.get_current_context().meta.get(QUIET))


def is_verbose() -> bool:
    return bool(click.get_current_context().meta.get(VERBOSE))
