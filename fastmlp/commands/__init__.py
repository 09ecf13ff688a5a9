"""The command-line interface: one module per command; program.py combines them."""

from __future__ import annotations


def main() -> None:
    """Entry point of the console script `fastmlp`."""
    from fastmlp.commands.console import prepare_process
    from fastmlp.commands.program import program

    prepare_process()
    program(prog_name="fastmlp")
