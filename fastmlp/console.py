"""What all commands of the program share: streams, errors and exit codes, and options made from settings.

Here: everything about Click that is not a command. Not here: the commands (cli.py).
"""

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

from fastmlp.backends import CHOICES
from fastmlp.config import FIELDS, flag
from fastmlp.config_kinds import FLAG
from fastmlp.errors import DataError, FastMLPError, UnavailableError

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
    from fastmlp.artifacts import json_bytes

    show(json_bytes(value, indent=2))


def show_figures(result: Mapping[str, Any], as_json: bool) -> None:
    """The figures of a run or of an evaluation: an object, or a table."""
    from fastmlp.tables import print_result

    if as_json:
        show_json(result)
        return
    names = {"data": result["data"]["name"], "network": result["network"]["label"]}
    with writing_results():
        print_result({**result, **names})


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
        except FastMLPError as error:
            fail(ctx, error)
        except MemoryError as error:
            fail(ctx, UnavailableError(f"not enough memory: {error}; take smaller --hidden or --batch-size"))
        except Exception:
            note(f"{traceback.format_exc()}{REPORT}")
            ctx.exit(1)


def fail(ctx: click.Context, error: FastMLPError) -> None:
    """One line and the exit code; with -v -v or FASTMLP_DEBUG also the way to it."""
    if ctx.meta.get(VERBOSE, 0) > 1 or os.environ.get("FASTMLP_DEBUG"):
        note(traceback.format_exc())
    note("fastmlp: error: " + " ".join(str(error).splitlines()))
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
    signal.signal(signal.SIGTERM, terminate)
    # What imports make stays to the end; looking for garbage in it, then and at the end, took an eighth of a short run.
    gc.set_threshold(GARBAGE)
    atexit.register(gc.freeze)


# ------------------------------------------------------------------------------------------------ options


class Sections(click.Command):
    """A command whose --help has a heading for each group of settings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for option in self.get_params(ctx):
            known = FIELDS.get(option.name or "")
            heading = known.metadata["group"] if known else "Other options"
            record = option.get_help_record(ctx)
            sections.setdefault(heading, []).extend([record] if record else [])
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def setting_options(command: Function) -> Function:
    """A flag for each setting of a run; its text goes to `config_sources.resolve` as it is."""
    for name in reversed(FIELDS):
        command = setting_option(name)(command)
    return command


def setting_option(name: str) -> Function:
    """The flag of one setting, with its kind and its default in --help."""
    metadata, default = FIELDS[name].metadata, FIELDS[name].default
    if metadata["kind"] is FLAG:
        names = f"{flag(name)}/--no-{flag(name).removeprefix('--')}"
        return click.option(names, name, default=None, help=metadata["help"])
    values = default if isinstance(default, tuple) else (default,)
    shown = ",".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
    text = metadata["help"] + (f" [default: {shown}]" if default is not None else "")
    return click.option(flag(name), name, metavar=metadata["kind"].metavar, help=text)


def remember(key: str) -> Function:
    """A callback that keeps an option's value for the whole call."""

    def callback(ctx: click.Context, option: click.Parameter, value: Any) -> None:
        ctx.meta[key] = value

    return callback


def is_quiet() -> bool:
    return bool(click.get_current_context().meta.get(QUIET))


def is_verbose() -> bool:
    return bool(click.get_current_context().meta.get(VERBOSE))


json_option = click.option("--json", "as_json", is_flag=True, envvar="FASTMLP_JSON", help="Print one JSON object.")
quiet_option = click.option(
    *("-q", "--quiet"),
    is_flag=True,
    envvar="FASTMLP_QUIET",
    expose_value=False,
    callback=remember(QUIET),
    help="Nothing on stderr but errors.",
)
verbose_option = click.option(
    *("-v", "--verbose"),
    count=True,
    envvar="FASTMLP_VERBOSE",
    expose_value=False,
    callback=remember(VERBOSE),
    help="Tell more; given twice, also where in the program an error arose.",
)
data_dir_option = click.option("--data-dir", envvar="FASTMLP_DATA", metavar="FOLDER", help=FIELDS["data_dir"].metadata["help"])
backend_option = click.option(
    "--backend",
    type=click.Choice(CHOICES),
    envvar="FASTMLP_BACKEND",
    help="Engine [default: that of the run, else auto].",
)
threads_option = click.option(
    "--threads", type=click.IntRange(1), envvar="FASTMLP_THREADS", help=FIELDS["threads"].metadata["help"]
)


def common_options(command: Function) -> Function:
    """What every command has."""
    return json_option(quiet_option(verbose_option(command)))


def engine_options(command: Function) -> Function:
    """How a saved model computes."""
    return backend_option(threads_option(command))
