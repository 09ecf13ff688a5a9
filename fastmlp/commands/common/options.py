"""Click options and command classes: options generated from settings, and options that several commands share.

console.py handles output streams, error messages and exit codes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import click

from fastmlp.commands.common.console import FLAGS, QUIET, VERBOSE, Function, flag
from fastmlp.engines import CHOICES
from fastmlp.errors import printable
from fastmlp.experiments.config.fields import BOOLEAN
from fastmlp.experiments.config.names import setting_synonyms
from fastmlp.experiments.config.shared import DataSettings, fields_of
from fastmlp.experiments.config.train import FIELDS

SOURCE = "NAME|FILE|FOLDER"
HELP_ALL = "fastmlp.help_all"  # key of ctx.meta: whether the help shows all options
OTHER = "Other"  # heading of options that are not settings


class Command(click.Command):
    """A Click command that accepts synonyms of its flags, and rejects a single-valued flag that is given twice."""

    def make_parser(self, ctx: click.Context) -> Any:
        """Return Click's parser with two additions: the hidden synonyms in config/names.py, and `check_given_once`."""
        parser = super().make_parser(ctx)
        options = {setting_of(option): option for option in self.get_params(ctx) if isinstance(option, click.Option)}
        for other, name in setting_synonyms(options).items():
            option = options[name]
            action = "append" if option.multiple else "store_const" if option.is_flag else "store"
            parser.add_option(
                option,
                [flag(other)],
                option.name,
                action,
                option.nargs,
                const=True if option.is_bool_flag else option.flag_value,
            )
        parse = parser.parse_args

        def parse_args(args: list[str]) -> Any:
            parsed = parse(args)
            if not ctx.resilient_parsing:
                check_given_once(parsed[2], ctx)
            return parsed

        parser.parse_args = parse_args  # type: ignore[method-assign]
        return parser

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments. Control characters in Click's messages are escaped, because an argument can be a file name."""
        given = len(args)
        try:
            rest = super().parse_args(ctx, args)
            check_not_empty(self.params, ctx)
            return rest
        except click.ClickException as error:
            if given:  # without arguments, the message can be the help
                error.message = printable(error.message)  # type: ignore[misc]  # final
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """Store the command's flags, so that error messages can name them, and run the command."""
        ctx.meta[FLAGS] = ctx.meta.get(FLAGS, frozenset()) | {name for param in self.params for name in param.opts}
        return super().invoke(ctx)


class Group(Command, click.Group):
    """A Click group whose subcommands are `Command` objects, and whose subgroups have the same class as the group."""

    command_class, group_class = Command, type


def check_given_once(order: Iterable[click.Parameter], ctx: click.Context) -> None:
    """Raise UsageError if a single-valued option occurs more than once in `order`, the parameters in the order given."""
    counted = Counter(option for option in order if isinstance(option, click.Option) and takes_one_value(option))
    for option, times in counted.items():
        if times > 1:
            raise click.UsageError(f"Option {shown_names(option)} is given {times} times; give it once.", ctx)


def check_not_empty(parameters: Iterable[click.Parameter], ctx: click.Context) -> None:
    """Raise UsageError if an argument, or an option that is not a setting, is empty text on the command line.

    An empty text, such as that of a shell variable that is not set, would be the path of the current folder, or no path.
    """
    for one in parameters:
        name = one.name or ""
        given = ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE and ctx.params.get(name)
        if not isinstance(one, SettingOption) and "" in (given if isinstance(given, tuple) else [given]):
            shown = f"Option {shown_names(one)}" if isinstance(one, click.Option) else f"Argument '{one.human_readable_name}'"
            raise click.UsageError(f"{shown} is empty; give a value.", ctx)


def setting_of(option: click.Option) -> str:
    """Return the name of the setting that an option sets, such as batch_size for --batch-size."""
    return max(option.opts, key=len).lstrip("-").replace("-", "_")


def takes_one_value(option: click.Option) -> bool:
    """Return whether an option has a single value, which includes on/off pairs such as --force/--no-force."""
    several = option.multiple or option.count
    return not several and (not option.is_flag or bool(option.secondary_opts))


def shown_names(option: click.Option) -> str:
    """Return the names of an option for a message.

    >>> shown_names(click.Option(["--force/--no-force"]))
    "'--force' / '--no-force'"
    """
    return " / ".join(f"'{name}'" for name in (*option.opts, *option.secondary_opts))


class Sections(Command):
    """A command that lists its options under headings; --help shows the common options, --help-all shows all of them."""

    def __init__(self, *args: Any, **given: Any) -> None:
        super().__init__(*args, **given)
        text = "Show this message with all options and exit."
        self.params.append(
            click.Option(["--help-all"], is_flag=True, is_eager=True, expose_value=False, callback=show_all, help=text)
        )

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under their headings."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for option in self.get_params(ctx):
            record = option.get_help_record(ctx)
            if record and (ctx.meta.get(HELP_ALL) or getattr(option, "common", True)):
                sections.setdefault(getattr(option, "heading", OTHER), []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Append a line to the short help that mentions --help-all."""
        super().format_epilog(ctx, formatter)
        if not ctx.meta.get(HELP_ALL):
            formatter.write_paragraph()
            formatter.write_text(f"These are the common options; `{ctx.command_path} --help-all` shows all options.")


def show_all(ctx: click.Context, option: click.Parameter, value: bool) -> None:
    """Callback of --help-all: print the help with all options, and exit."""
    if value and not ctx.resilient_parsing:
        ctx.meta[HELP_ALL] = True
        click.echo(ctx.get_help())
        ctx.exit()


class Chain(Sections, Group):
    """A command with its own settings that may be followed by a subcommand, as in `extract … train`."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, then the subcommands."""
        super().format_options(ctx, formatter)
        self.format_commands(ctx, formatter)


class Option(click.Option):
    """An option with a heading for --help; if `common` is false, only --help-all shows it."""

    def __init__(self, *args: Any, heading: str = OTHER, common: bool = True, **given: Any) -> None:
        super().__init__(*args, **given)
        self.heading, self.common = heading, common


class SettingOption(Option):
    """The option of a setting, whose type checks the text."""


def setting_options(settings: type[DataSettings], left_out: Collection[str] = ()) -> Function:
    """Return a decorator that adds a flag for each setting of a class. `sources.resolve_as` parses the values."""
    fields = [one for one in fields_of(settings).values() if one.name not in left_out]
    groups = list(dict.fromkeys(one.metadata["group"] for one in fields))
    ordered = sorted(fields, key=lambda one: groups.index(one.metadata["group"]))

    def decorate(command: Function) -> Function:
        for one in reversed(ordered):
            command = setting_option(one.name, one.metadata, one.default)(command)
        return command

    return decorate


def setting_option(name: str, metadata: Mapping[str, Any], default: Any) -> Function:
    """Return a decorator that adds the flag of one setting; --help shows its type and its default."""
    shared = {"cls": SettingOption, "heading": metadata["group"], "common": metadata["common"]}
    text = with_flags(metadata["help"])
    if metadata["type"] is BOOLEAN:
        names = f"{flag(name)}/--no-{flag(name).removeprefix('--')}"
        return click.option(names, name, default=None, help=text, **shared)
    values = default if isinstance(default, tuple) else (default,)
    shown = ",".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
    text += f" [default: {shown}]" if shown and default is not None else ""
    return click.option(flag(name), name, metavar=metadata["type"].metavar, help=text, **shared)


def with_flags(text: str) -> str:
    """Replace the names of settings in backticks in a help text with their flags.

    >>> with_flags("Instead of `val_fraction`.")
    'Instead of --val-fraction.'
    """
    return re.sub(r"`(\w+)`", lambda found: flag(found[1]), text)


def remember(key: str) -> Function:
    """Return a callback that stores an option's value in ctx.meta, which a command shares with its subcommands."""

    def callback(ctx: click.Context, option: click.Parameter, value: Any) -> None:
        ctx.meta[key] = value or ctx.meta.get(key, value)

    return callback


json_option = click.option(
    "--json", "as_json", is_flag=True, envvar="FASTMLP_JSON", help="Print the result as one JSON object."
)
quiet_option = click.option(
    *("-q", "--quiet"),
    is_flag=True,
    envvar="FASTMLP_QUIET",
    expose_value=False,
    callback=remember(QUIET),
    help="Write only errors to stderr.",
)
verbose_option = click.option(
    *("-v", "--verbose"),
    count=True,
    envvar="FASTMLP_VERBOSE",
    expose_value=False,
    callback=remember(VERBOSE),
    help="Show the settings; if given twice, also show the traceback of an error.",
)
data_dir_option = click.option("--data-dir", envvar="FASTMLP_DATA", metavar="FOLDER", help=FIELDS["data_dir"].metadata["help"])
backend_option = click.option(
    "--backend",
    type=click.Choice(CHOICES),
    envvar="FASTMLP_BACKEND",
    help="Engine [default: auto; evaluate uses the engine of the run].",
)
threads_option = click.option(
    "--threads", type=click.IntRange(1), envvar="FASTMLP_THREADS", help=FIELDS["threads"].metadata["help"]
)
invert_option = click.option(
    "--invert",
    type=click.Choice(["auto", "yes", "no"]),
    default="auto",
    show_default=True,
    envvar="FASTMLP_INVERT",
    help="Invert images; auto inverts those that are dark on light if the training images are light on dark, and vice versa.",
)
skip_bad_option = click.option(
    "--skip-bad",
    is_flag=True,
    envvar="FASTMLP_SKIP_BAD",
    help="Leave out unreadable image files instead of exiting with an error.",
)
max_decompressed_option = click.option(
    "--max-decompressed",
    type=float,
    envvar="FASTMLP_MAX_DECOMPRESSED",
    metavar="X",
    help=FIELDS["max_decompressed"].metadata["help"],
)
config_option = click.option("--config", metavar="FILE", envvar="FASTMLP_CONFIG", help="TOML file with settings as keys.")
print_option = click.option(
    "--print-config", cls=Option, common=False, is_flag=True, help="Print the settings as TOML, as read by --config, and exit."
)
recipe_option = click.option(
    "--recipe",
    metavar="NAME",
    envvar="FASTMLP_RECIPE",
    help="Use the settings of a published experiment; `fastmlp recipes` lists all.",
)


def source_options(command: Function) -> Function:
    """Add --config and --print-config."""
    return config_option(print_option(command))


def common_options(command: Function) -> Function:
    """Add --json, --quiet and --verbose, which every command has."""
    return json_option(quiet_option(verbose_option(command)))


def engine_options(command: Function) -> Function:
    """Add --backend and --threads, for commands that load a saved model."""
    return backend_option(threads_option(command))


BENCH_OPTIONS = (
    click.option(
        *("--network", "networks"),
        multiple=True,
        envvar="FASTMLP_NETWORK",
        metavar="N-N-N",
        help="Layer sizes, from input to output; may be given more than once [default: 784-128-10].",
    ),
    click.option(
        *("--batch-size", "batches"),
        multiple=True,
        type=int,
        envvar="FASTMLP_BATCH_SIZE",
        help="Mini-batch size, used with every network; may be given more than once [default: 64].",
    ),
    click.option(
        "--all", "everything", is_flag=True, envvar="FASTMLP_ALL", help="Measure the seven rows of the table in README.md."
    ),
    click.option(
        "--estimators",
        is_flag=True,
        envvar="FASTMLP_ESTIMATORS",
        help="Compare MLPClassifier and MLPRegressor with scikit-learn's classes; uses only --rounds, --data-dir and --out.",
    ),
    click.option(
        "--rows", type=int, default=48_000, show_default=True, envvar="FASTMLP_ROWS", help="Maximum number of rows per epoch."
    ),
    click.option(
        "--rounds", type=int, default=5, show_default=True, envvar="FASTMLP_ROUNDS", help="Number of timed epochs per library."
    ),
    click.option(
        "--backends",
        envvar="FASTMLP_BACKENDS",
        metavar="NAME,...",
        help="Libraries to time: engines of fastmlp, torch, torch-compile, sklearn, jax [default: all that are installed].",
    ),
    threads_option,
    click.option("--optimizer", default="sgd", show_default=True, envvar="FASTMLP_OPTIMIZER", help="Optimizer."),
    click.option("--activation", default="relu", show_default=True, envvar="FASTMLP_ACTIVATION", help="Activation function."),
    click.option(
        "--dropout",
        type=float,
        default=0.0,
        show_default=True,
        envvar="FASTMLP_DROPOUT",
        help="Dropout rate of the hidden layers.",
    ),
    click.option(
        "--data",
        default="fashion-mnist",
        show_default=True,
        envvar="FASTMLP_DATASET",
        metavar=f"{SOURCE}|synthetic",
        help="Data set; synthetic data are used if a named data set is missing or does not fit the network.",
    ),
    data_dir_option,
    click.option("--out", metavar="FOLDER", envvar="FASTMLP_OUT", help="Write bench.json and bench.png into this folder."),
)


def bench_options(command: Function) -> Function:
    """Add the options of `bench`."""
    for option in reversed(BENCH_OPTIONS):
        command = option(command)
    return command
