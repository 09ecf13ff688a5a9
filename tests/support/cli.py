"""Helpers of the command-line tests: run the program in this process, and check its error messages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fastmlp.commands.program import program
from fastmlp.experiments.config.extract import ExtractConfig
from fastmlp.experiments.config.learning_rate import RangeTestConfig
from fastmlp.experiments.config.shared import fields_of
from fastmlp.experiments.config.sources import variable

SMALL = ["--hidden", "16", "--backend", "numpy"]
FAST = [*SMALL, "--epochs", "3"]
OTHER_VARIABLES = ["FASTMLP_CONFIG", "FASTMLP_RECIPE", "FASTMLP_JSON", "FASTMLP_QUIET", "FASTMLP_VERBOSE", "FASTMLP_DEBUG"]


def override(flags: Sequence[str], *changes: str) -> list[str]:
    """Return `flags`, each of which has one value, with the flags in `changes` replaced or added at the end."""
    pairs = zip(flags[::2], flags[1::2], strict=True)
    return [text for pair in pairs if pair[0] not in changes for text in pair] + [*changes]


def forget_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove environment variables that set options, so that the user's shell does not affect a test."""
    for name in [*map(variable, fields_of(RangeTestConfig) | fields_of(ExtractConfig)), *OTHER_VARIABLES]:
        monkeypatch.delenv(name, raising=False)


def call(*arguments: str | Path, **variables: str) -> Result:
    """Run the program with additional environment variables."""
    return CliRunner(env=variables).invoke(program, [str(one) for one in arguments], prog_name="fastmlp")


def ok(*arguments: str | Path, **variables: str) -> Result:
    """Run the program and check that it succeeds."""
    result = call(*arguments, **variables)
    assert result.exit_code == 0, result.output
    return result


def refused(code: int, *arguments: str | Path, **variables: str) -> str:
    """Check that the program exits with `code` and prints one line to stderr and nothing to stdout; return its message."""
    result = call(*arguments, **variables)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("fastmlp: error: ")
    return line.removeprefix("fastmlp: error: ")


@pytest.fixture(autouse=True, scope="module")
def no_figures() -> Iterator[None]:
    """Training runs plot no figures, which take most of the time of a short run. Import this fixture to use it in a file."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("result", "sweeps.seeds"):
            patch.setattr(f"fastmlp.experiments.{module}.draw", lambda *given: None)
        patch.setattr("fastmlp.experiments.training_run.load_matplotlib", lambda: None)
        yield
