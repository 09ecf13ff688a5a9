"""The program `fastmlp`: each command parses, calls and prints. No arithmetic, no heavy import before it is needed.

One contract for all: results on stdout, everything else on stderr; --json prints exactly one object; a flag wins
over its variable FASTMLP_<FLAG>, that over --config, that over the default; nothing ever asks a question.
Exit codes: 0 done, 1 a bug, 2 usage or configuration, 3 bad data or file, 4 something is missing, 5 diverged,
6 a threshold was missed, 130 and 143 after SIGINT and SIGTERM.
"""

from __future__ import annotations

import click

from fastmlp import __version__
from fastmlp.commands.bench import bench
from fastmlp.commands.console import Program
from fastmlp.commands.data import data
from fastmlp.commands.doctor import doctor
from fastmlp.commands.evaluate import evaluate
from fastmlp.commands.extract import extract
from fastmlp.commands.predict import predict
from fastmlp.commands.recipes import recipes
from fastmlp.commands.toolkit import extraction_tools
from fastmlp.commands.train import train

# The object is what commands below the program's own that train convolutional networks ask for fastmlp.cnn.
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100, "obj": extraction_tools}


@click.group(cls=Program, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="fastmlp", message="%(prog)s %(version)s")
def program() -> None:
    """Train multi-layer perceptrons, fast.

    \b
    fastmlp train                           handwritten digits, in seconds, without a download
    fastmlp train --data fashion-mnist --hidden 400,250,100 --dropout 0.2 --out runs/a
    fastmlp evaluate runs/a                 the same figures once more
    fastmlp predict runs/a shirt.png        a label and its probability
    fastmlp extract --data photos/ train    a convolutional network's features into the same
    fastmlp recipes                         published experiments, by name
    fastmlp doctor                          what this machine has, and whether it works
    fastmlp bench                           how fast it trains, and how fast others do
    """


for command in (train, extract, evaluate, predict, data, recipes, doctor, bench):
    program.add_command(command)
