"""The program `fastmlp`. Each command parses its options, calls the library, and prints the result.

Heavy packages are imported only by the commands that need them.

All commands follow the same conventions. Results go to stdout, everything else goes to stderr. --json prints exactly one
object. A flag takes precedence over its environment variable FASTMLP_<FLAG>, which takes precedence over --config. Defaults
come last. Commands never ask for input.

Exit codes: 0 success; 1 bug in fastmlp; 2 wrong usage or configuration; 3 bad data or file; 4 missing package, device,
memory or network connection; 5 training diverged; 6 metric below the required minimum; 130 and 143 after SIGINT and SIGTERM.
"""

from __future__ import annotations

import signal
import traceback
from pathlib import Path
from typing import Any

import click

from fastmlp import __version__
from fastmlp.commands import SIGNAL_CODE
from fastmlp.commands.bench import bench
from fastmlp.commands.common.console import fail, note, note_lines
from fastmlp.commands.common.offline import refused_connection
from fastmlp.commands.common.options import Group
from fastmlp.commands.common.toolkit import extraction_tools
from fastmlp.commands.compare import compare
from fastmlp.commands.data import data
from fastmlp.commands.doctor import doctor
from fastmlp.commands.evaluate import evaluate, verify
from fastmlp.commands.extract import extract
from fastmlp.commands.predict import predict
from fastmlp.commands.recipes import recipes
from fastmlp.commands.train import lr_find, train
from fastmlp.errors import DataError, UnavailableError

REPORT = "fastmlp: this is a bug in fastmlp; please report it with the lines above and the output of `fastmlp doctor`"


def check_current_folder() -> None:
    """Raise DataError if the current folder has been removed, because relative paths then cannot be resolved."""
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise DataError("the current folder does not exist any more; change to another folder") from error


class Program(Group):
    """The top-level group of commands. It turns an error of a command into one line on stderr and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command, and report its errors."""
        try:
            check_current_folder()
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # Click reports these itself
        except KeyboardInterrupt:  # only if `main` has not installed its signal handlers
            note("fastmlp: interrupted")
            ctx.exit(SIGNAL_CODE + signal.SIGINT)
        except MemoryError as error:
            text = f"not enough memory: {error}; use a smaller network or a smaller batch size"
            fail(ctx, UnavailableError(text, settings=("hidden", "batch_size")))
        except Exception as error:
            known = refused_connection(error) or error
            if isinstance(getattr(known, "exit_code", None), int):  # FastMLPError, and errors of fastmlp.cnn
                fail(ctx, known)
            note_lines(f"{traceback.format_exc()}{REPORT}")
            ctx.exit(1)


# obj is the function that imports fastmlp.cnn; Click passes it to `recipes run`, because some recipes need fastmlp.cnn.
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100, "obj": extraction_tools}


@click.group(cls=Program, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="fastmlp", message="%(prog)s %(version)s")
def program() -> None:
    """Train multi-layer perceptrons, and evaluate and use the trained models.

    \b
    fastmlp train                           train on handwritten digits; needs no download
    fastmlp train --data fashion-mnist --hidden 400,250,100 --dropout 0.2 --out runs/a
    fastmlp lr-find --optimizer sgd         suggest a learning rate
    fastmlp train --resume runs/a           continue an interrupted run
    fastmlp evaluate runs/a                 evaluate the trained model
    fastmlp predict runs/a shirt.png        predict a label and its probability
    fastmlp compare runs/a runs/b           compare the metrics and the settings of runs
    fastmlp extract --data photos/ train    train on features of a convolutional network
    fastmlp recipes                         list published experiments
    fastmlp doctor                          check the installation
    fastmlp bench                           compare the training speed with other libraries
    """


for command in (train, lr_find, extract, evaluate, verify, predict, compare, data, recipes, doctor, bench):
    program.add_command(command)
