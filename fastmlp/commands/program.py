"""The program `fastmlp`: each command parses, calls and prints. Heavy packages are imported when a command needs them.

All commands have the same conventions: results on stdout, everything else on stderr; --json prints exactly one object; a flag
takes precedence over its variable FASTMLP_<FLAG>, the variable over --config, --config over the default; never interactive.
Exit codes: 0 success, 1 a bug, 2 usage or configuration, 3 bad data or file, 4 something is missing, 5 diverged,
6 below a threshold, 130 and 143 after SIGINT and SIGTERM.
"""

from __future__ import annotations

import signal
import traceback
from typing import Any

import click

from fastmlp import __version__
from fastmlp.commands.bench import bench
from fastmlp.commands.console import SIGNAL_CODE, fail, note
from fastmlp.commands.data import data
from fastmlp.commands.doctor import doctor
from fastmlp.commands.evaluate import evaluate
from fastmlp.commands.extract import extract
from fastmlp.commands.options import Group
from fastmlp.commands.predict import predict
from fastmlp.commands.recipes import recipes
from fastmlp.commands.toolkit import extraction_tools
from fastmlp.commands.train import train
from fastmlp.errors import UnavailableError

REPORT = "fastmlp: this is a bug in fastmlp; please report it with the lines above and with `fastmlp doctor`"


class Program(Group):
    """The commands; each of their errors becomes a line on stderr and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # Click reports these itself
        except KeyboardInterrupt:
            note("fastmlp: interrupted")
            ctx.exit(SIGNAL_CODE + signal.SIGINT)
        except MemoryError as error:
            text = f"not enough memory: {error}; use a smaller network or a smaller batch"
            fail(ctx, UnavailableError(text, settings=("hidden", "batch_size")))
        except Exception as error:
            if isinstance(getattr(error, "exit_code", None), int):  # FastMLPError, and errors of fastmlp.cnn
                fail(ctx, error)
            note(f"{traceback.format_exc()}{REPORT}")
            ctx.exit(1)


# "obj" is passed to `recipes run`: the function that imports fastmlp.cnn, which recipes may need.
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100, "obj": extraction_tools}


@click.group(cls=Program, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="fastmlp", message="%(prog)s %(version)s")
def program() -> None:
    """Train multi-layer perceptrons, fast.

    \b
    fastmlp train                           handwritten digits, in seconds, without a download
    fastmlp train --data fashion-mnist --hidden 400,250,100 --dropout 0.2 --out runs/a
    fastmlp evaluate runs/a                 measure the model again
    fastmlp predict runs/a shirt.png        a label and its probability
    fastmlp extract --data photos/ train    train on features of a convolutional network
    fastmlp recipes                         list published experiments
    fastmlp doctor                          check the installation
    fastmlp bench                           compare the speed with other libraries
    """


for command in (train, extract, evaluate, predict, data, recipes, doctor, bench):
    program.add_command(command)
