"""The commands `fastmlp data list`, `fetch` and `verify`. data/named.py and data/download.py implement them."""

from __future__ import annotations

import click

from fastmlp.commands.common.console import is_quiet, say, show, show_files, show_json
from fastmlp.commands.common.options import Group, common_options, data_dir_option
from fastmlp.errors import DataError


@click.group(cls=Group)
def data() -> None:
    """List, fetch and verify the named data sets."""


@data.command("list")
@data_dir_option
@common_options
def data_list(data_dir: str | None, as_json: bool) -> None:
    """List the named data sets and the state of their files."""
    from fastmlp.data.named import list_data

    rows = [row._asdict() for row in list_data(data_dir)]
    if as_json:
        show_json({"datasets": rows})
    else:
        show("\n".join("{name:<14} {state:<11} {description}".format(**row) for row in rows))


@data.command("fetch")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@data_dir_option
@common_options
def data_fetch(names: tuple[str, ...], data_dir: str | None, as_json: bool) -> None:
    """Download missing or damaged files of the given data sets, or of all data sets if no NAME is given.

    The SHA-256 hash of every file is verified.
    """
    from fastmlp.data.named import DATASETS, fetch_data

    files = [row for name in names or DATASETS for row in fetch_data(name, data_dir, progress=not is_quiet())]
    show_files(files, as_json)


@data.command("verify")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@data_dir_option
@common_options
def data_verify(names: tuple[str, ...], data_dir: str | None, as_json: bool) -> None:
    """Verify the SHA-256 hashes of the given data sets, or of all downloaded data sets if no NAME is given."""
    from fastmlp.data.named import list_data, verify_data

    there = [row.name for row in list_data(data_dir) if row.state != "missing"]
    files = [row for name in names or there for row in verify_data(name, data_dir)]
    show_files(files, as_json)
    if not files:
        say("no data set files found; `fastmlp data list --json` shows their folders, `fastmlp data fetch` downloads them")
    if bad := [row.file for row in files if row.status != "ok"]:
        raise DataError(f"damaged or missing: {', '.join(bad)}; run `fastmlp data fetch` to download them")
