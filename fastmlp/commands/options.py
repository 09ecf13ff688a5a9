"""Options of the commands: made from settings, and those that commands share.

Not here: streams, errors and exit codes (console.py).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import click

from fastmlp.commands.console import QUIET, VERBOSE, Function
from fastmlp.engines import CHOICES
from fastmlp.experiments.config.fields import FLAG
from fastmlp.experiments.config.train import FIELDS, DataSettings, fields_of, flag

SOURCE = "NAME|FILE|FOLDER"


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
    """A flag for each setting of a class; its text goes to `sources.resolve_as` as it is."""

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
