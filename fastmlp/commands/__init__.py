"""The command line: a file per command, combined in program.py."""

from __future__ import annotations


def main() -> None:
    """Run the command line; this is the console script."""
    from fastmlp.commands.console import prepare_process
    from fastmlp.commands.program import program

    prepare_process()
    program(prog_name="fastmlp")
