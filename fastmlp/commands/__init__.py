"""The command line: one file per command, put together in program.py."""

from __future__ import annotations


def main() -> None:
    """The console script."""
    from fastmlp.commands.console import prepare_process
    from fastmlp.commands.program import program

    prepare_process()
    program(prog_name="fastmlp")
