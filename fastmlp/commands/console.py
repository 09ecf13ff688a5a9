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
from collections.abc import Callable, Collection, Iterator, Mapping
from types import FrameType
from typing import Any, TextIO

import click

from fastmlp.engines import CHOICES
from fastmlp.errors import ConfigError, DataError, UnavailableError
from fastmlp.experiments.config.fields import FLAG
from fastmlp.experiments.config.train import FIELDS, DataSettings, fields_of, flag

Function = Callable[..., Any]

REPORT = "fastmlp: this is a bug in fastmlp; please report it with the lines above and with `fastmlp doctor`"
SIGNAL_CODE = 128  # plus the signal's number: the exit code of a program that a signal ended
GARBAGE = 200_000  # objects made and not deleted before Python looks for cycles among them
SOURCE = "NAME|FILE|FOLDER"
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
            if isinstance(getattr(error, "exit_code", None), int):  # FastMLPError, and what package cnn raises on purpose
                fail(ctx, error)
            note(f"{traceback.format_exc()}{REPORT}")
            ctx.exit(1)


def fail(ctx: click.Context, error: Any) -> None:
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
    atexit.register(freeze)


def freeze() -> None:
    """Leave what is in memory to the system; but PyTorch's libraries complain of what is not taken down in order."""
    if "torch" not in sys.modules:
        gc.freeze()


# ------------------------------------------------------------------------------------------------ options


class Sections(click.Command):
    """A command whose --help has a heading for each group of settings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for option in self.get_params(ctx):
            heading = getattr(option, "heading", "Other options")
            record = option.get_help_record(ctx)
            sections.setdefault(heading, []).extend([record] if record else [])
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


class Chain(Sections, click.Group):
    """A command with settings that another one can follow."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        self.format_commands(ctx, formatter)


class Setting(click.Option):
    """The flag of a setting, under a heading of --help."""

    def __init__(self, *args: Any, heading: str, **given: Any) -> None:
        super().__init__(*args, **given)
        self.heading = heading


def setting_options(settings: type[DataSettings], left_out: Collection[str] = ()) -> Function:
    """A flag for each setting of a class; its text goes to `config_sources.resolve_as` as it is."""

    def decorate(command: Function) -> Function:
        for one in reversed(fields_of(settings).values()):
            if one.name not in left_out:
                command = setting_option(one.name, one.metadata, one.default)(command)
        return command

    return decorate


def setting_option(name: str, metadata: Mapping[str, Any], default: Any) -> Function:
    """The flag of one setting, with its kind and its default in --help."""
    common = {"cls": Setting, "heading": metadata["group"]}
    if metadata["kind"] is FLAG:
        names = f"{flag(name)}/--no-{flag(name).removeprefix('--')}"
        return click.option(names, name, default=None, help=metadata["help"], **common)
    values = default if isinstance(default, tuple) else (default,)
    shown = ",".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
    text = metadata["help"] + (f" [default: {shown}]" if default is not None else "")
    return click.option(flag(name), name, metavar=metadata["kind"].metavar, help=text, **common)


def remember(key: str) -> Function:
    """A callback that keeps an option's value for the whole call; of a command and the one below it either may have it."""

    def callback(ctx: click.Context, option: click.Parameter, value: Any) -> None:
        ctx.meta[key] = value or ctx.meta.get(key, value)

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


config_option = click.option("--config", metavar="FILE", envvar="FASTMLP_CONFIG", help="TOML file with settings as keys.")
print_option = click.option("--print-config", is_flag=True, help="Print the settings as TOML, fit for --config, and end.")
recipe_option = click.option(
    "--recipe", metavar="NAME", envvar="FASTMLP_RECIPE", help="Settings of a published experiment; see `fastmlp recipes`."
)


def source_options(command: Function) -> Function:
    """Where settings come from besides their flags."""
    return config_option(print_option(command))


def common_options(command: Function) -> Function:
    """What every command has."""
    return json_option(quiet_option(verbose_option(command)))


def engine_options(command: Function) -> Function:
    """How a saved model computes."""
    return backend_option(threads_option(command))


BENCH_OPTIONS = (
    click.option(
        *("--network", "networks"),
        multiple=True,
        envvar="FASTMLP_NETWORK",
        metavar="N-N-N",
        help="Sizes of all layers; may be given more than once [default: 784-128-10].",
    ),
    click.option(
        *("--batch-size", "batches"),
        multiple=True,
        type=int,
        envvar="FASTMLP_BATCH_SIZE",
        help="Rows of one update, for each network; may be given more than once [default: 64].",
    ),
    click.option("--all", "everything", is_flag=True, envvar="FASTMLP_ALL", help="The seven rows of README's table instead."),
    click.option(
        "--rows", type=int, default=48_000, show_default=True, envvar="FASTMLP_ROWS", help="Rows of an epoch, at most."
    ),
    click.option(
        "--rounds", type=int, default=5, show_default=True, envvar="FASTMLP_ROUNDS", help="Epochs of each to be timed."
    ),
    click.option(
        "--backends",
        envvar="FASTMLP_BACKENDS",
        metavar="NAME,...",
        help="Whom to measure: engines of fastmlp, torch, torch-compile, sklearn, jax [default: all that are there].",
    ),
    threads_option,
    click.option("--optimizer", default="sgd", show_default=True, envvar="FASTMLP_OPTIMIZER", help="Update rule."),
    click.option("--activation", default="relu", show_default=True, envvar="FASTMLP_ACTIVATION", help="Of all hidden layers."),
    click.option(
        "--dropout", type=float, default=0.0, show_default=True, envvar="FASTMLP_DROPOUT", help="After hidden layers."
    ),
    click.option(
        "--data",
        default="fashion-mnist",
        show_default=True,
        envvar="FASTMLP_DATASET",
        metavar=f"{SOURCE}|synthetic",
        help="Rows to train on; made-up ones where a named set is not there, or does not fit the network.",
    ),
    data_dir_option,
    click.option("--out", metavar="FOLDER", envvar="FASTMLP_OUT", help="Write bench.json and bench.png into it."),
)


def bench_options(command: Function) -> Function:
    """What `bench` is asked to measure."""
    for option in reversed(BENCH_OPTIONS):
        command = option(command)
    return command
