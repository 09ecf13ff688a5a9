"""Tests of command-line options: help texts, synonyms of flags, and flags that are given twice."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
from support.cli import call, forget_settings, ok, refused

from fastmlp.commands.common.console import flag
from fastmlp.commands.common.options import Command
from fastmlp.commands.program import CONTEXT, program
from fastmlp.experiments.config.extract import INHERITED, ExtractConfig
from fastmlp.experiments.config.learning_rate import IGNORED, RangeTestConfig
from fastmlp.experiments.config.names import SYNONYMS
from fastmlp.experiments.config.shared import fields_of
from fastmlp.experiments.config.train import TrainConfig

MOST_COMMON = 27  # maximum number of options in the short help
GROUPS = ["Data:", "Network:", "Training:", "Engine and result:", "Other:"]
SETTINGS = {
    ("train",): fields_of(TrainConfig).keys(),
    ("lr-find",): {*(fields_of(RangeTestConfig).keys() - {*IGNORED}), "out", "force"},
    ("extract",): fields_of(ExtractConfig).keys() - {"task"},
    ("extract", "train"): fields_of(TrainConfig).keys() - {*INHERITED},
}


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run every test in its own folder, without settings from environment variables."""
    forget_settings(monkeypatch)
    monkeypatch.chdir(tmp_path)


def options_in(text: str) -> list[str]:
    """Return the first name of each option that a help text lists under its headings."""
    _, _, listed = re.sub("^(Data|Options):$", "\0", text, count=1, flags=re.MULTILINE).partition("\0")
    return re.findall(r"^  (?:-\w, )?(--[a-z0-9-]+)", listed, re.MULTILINE)


def commands(group: click.Command, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], click.Command]:
    """Return a group and all its subcommands, at any depth, by their path."""
    below = group.commands if isinstance(group, click.Group) else {}
    return {path: group} | {
        key: one for name, command in below.items() for key, one in commands(command, (*path, name)).items()
    }


COMMANDS = commands(program)


def printed(*arguments: str | Path) -> dict[str, Any]:
    """Return the settings that `fastmlp train --print-config` prints."""
    return tomllib.loads(ok("train", "--print-config", *arguments).stdout)


# ------------------------------------------------------------------------------------------------ help


@pytest.mark.parametrize("path", SETTINGS, ids=" ".join)
def test_help_has_common_options_and_help_all_has_all(path: tuple[str, ...]) -> None:
    short, whole = ok(*path, "--help").stdout, ok(*path, "--help-all").stdout
    assert len(options_in(short)) <= MOST_COMMON
    assert {flag(name) for name in SETTINGS[path]} <= {*options_in(whole)}
    assert {*options_in(short)} < {*options_in(whole)}
    for text in (short, whole):
        assert [line for line in text.splitlines() if line in GROUPS] == GROUPS
    hint = f"`fastmlp {' '.join(path)} --help-all` shows all options."
    assert " ".join(short.split()).endswith(hint)
    assert hint not in " ".join(whole.split())


def test_help_texts_name_flags() -> None:
    """References to other settings in help texts are shown as flags, not as names in backticks. No default value is empty."""
    for path in SETTINGS:
        text = re.sub(r"\s+", " ", ok(*path, "--help-all").stdout)
        assert not re.search(r"`\w+_\w+`", text)
        assert "[default: ]" not in text
    text = re.sub(r"\s+", " ", ok("train", "--help-all").stdout).replace("- ", "-")  # lines may break after a hyphen
    assert "instead of --val-fraction" in text


# ------------------------------------------------------------------------------------------------ synonyms


def test_synonyms_of_flags() -> None:
    found = printed("--learning-rate", "0.5", "--batch", "8", "--hidden-layers", "9", "--random-state", "3", "--device", "cpu")
    assert [found[name] for name in ("lr", "batch_size", "hidden", "seed", "backend")] == [0.5, 8, [9], 3, "numba"]
    assert printed("--overwrite")["force"] is True


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_synonyms_are_not_in_the_help_and_shadow_no_option(path: tuple[str, ...]) -> None:
    command = COMMANDS[path]
    assert isinstance(command, Command)
    context = click.Context(command, help_option_names=CONTEXT["help_option_names"])  # Click caches the help option
    parser = command.make_parser(context)
    for param in command.get_params(context):
        for name in (*param.opts, *param.secondary_opts) if isinstance(param, click.Option) else ():
            assert (parser._long_opt | parser._short_opt)[name].obj is param
    own = {name for param in command.params for name in param.opts}
    hidden = {flag(other) for others in SYNONYMS.values() for other in others} - own
    assert hidden & {*options_in(ok(*path, "--help-all" if path in SETTINGS else "--help").stdout)} == set()


def test_a_synonym_of_another_commands_option_is_unknown() -> None:
    assert call("doctor", "--learning-rate", "1").exit_code == 2


def test_names_are_understood_in_any_spelling() -> None:
    found = printed("--activation", "ReLU,leaky_relu", "--hidden", "9,8", "--optimizer", "SGD", "--loss", "mse", "--init", "He")
    assert found["activation"] == ["relu", "leaky-relu"]
    assert [found[name] for name in ("optimizer", "loss", "init")] == ["sgd", "squared-error", "he"]


# ------------------------------------------------------------------------------------------------ flags given twice


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train", "--lr", "1", "--lr", "2"], "--lr"),
        (["train", "--lr", "1", "--learning-rate", "1"], "--lr"),
        (["train", "--batch", "1", "--batch", "1"], "--batch-size"),
        (["train", "--force", "--no-force"], "--force"),
        (["train", "--overwrite", "--force"], "--force"),
        (["train", "--config", "a", "--config", "b"], "--config"),
        (["lr-find", "--out", "a", "--out", "b"], "--out"),
        (["extract", "--epochs", "1", "--epochs", "2", "train"], "--epochs"),
        (["extract", "--epochs", "1", "train", "--epochs", "1", "--epochs", "2"], "--epochs"),
        (["evaluate", "a", "--split", "all", "--split", "test"], "--split"),
        (["evaluate", "a", "--data", "b", "--dataset", "c"], "--data"),
        (["predict", "a", "b", "--top", "1", "--top", "2"], "--top"),
        (["data", "list", "--data-dir", "a", "--data-dir", "b"], "--data-dir"),
        (["recipes", "run", "a", "--jobs", "1", "--jobs", "2"], "--jobs"),
        (["recipes", "plot", "--out", "a", "--out", "b"], "--out"),
        (["doctor", "--data-dir", "a", "--data-dir", "b"], "--data-dir"),
        (["bench", "--rounds", "1", "--rounds", "2"], "--rounds"),
    ],
)
def test_a_flag_with_one_value_given_twice_is_an_error(arguments: list[str], named: str) -> None:
    result = call(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"'{named}'" in result.stderr.splitlines()[-1]
    assert "is given 2 times; give it once." in result.stderr.splitlines()[-1]


def test_several_values_and_counts_may_be_repeated() -> None:
    assert printed("-v", "-v", "-q", "-q", "--print-config")["epochs"] == 50
    result = call(
        "bench", "--network", "2-3-2", "--network", "2-4-2", "--batch-size", "1", "--batch", "2", "--backends", "none"
    )
    assert "given" not in result.stderr
    chained = call("extract", "--epochs", "1", "--print-config", "train", "--epochs", "2")
    assert chained.exit_code == 0


# ------------------------------------------------------------------------------------------------ flags in messages


def test_messages_show_only_flags_that_the_command_has(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("val_count = 3\nval_fraction = 0.1\n")
    assert refused(2, "train", "--config", "a.toml").endswith("[--val-count, --val-fraction]")
    assert refused(2, "train", "--epochs", "many") == "epochs must be a whole number, not 'many' [--epochs]"
    assert "[" not in refused(4, "data", "fetch", "mnist", "-q", "--data-dir", str(tmp_path), FASTMLP_OFFLINE="1")
