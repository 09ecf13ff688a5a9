"""What the tests of the program share: calling it in this process, and what a refusal must look like."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fastmlp.commands.program import program
from fastmlp.experiments.config.extract import ExtractConfig
from fastmlp.experiments.config.sources import VARIABLES, variable
from fastmlp.experiments.config.train import fields_of

FAST = ["--hidden", "16", "--epochs", "3", "--backend", "numpy"]
OTHER_VARIABLES = ["FASTMLP_CONFIG", "FASTMLP_RECIPE", "FASTMLP_JSON", "FASTMLP_QUIET", "FASTMLP_VERBOSE", "FASTMLP_DEBUG"]


def forget_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables of the tester's shell must not change a test."""
    for name in [*VARIABLES.values(), *map(variable, fields_of(ExtractConfig)), *OTHER_VARIABLES]:
        monkeypatch.delenv(name, raising=False)


def call(*arguments: str | Path, **variables: str) -> Result:
    return CliRunner(env=variables).invoke(program, [str(one) for one in arguments], prog_name="fastmlp")


def ok(*arguments: str | Path, **variables: str) -> Result:
    result = call(*arguments, **variables)
    assert result.exit_code == 0, result.output
    return result


def refused(code: int, *arguments: str | Path, **variables: str) -> str:
    """The one line that a refusal puts on stderr; stdout stays empty."""
    result = call(*arguments, **variables)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("fastmlp: error: ")
    return line.removeprefix("fastmlp: error: ")
