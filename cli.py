"""Command line of a source checkout: `python cli.py …`. After installation, run `fastmlp …` or `python -m fastmlp …`.

The command `extract` works only if fastmlp is installed (an editable install is enough), because the folder cnn/ is not
importable as fastmlp.cnn otherwise. This file is not installed, because a top-level module named `cli` could conflict with a
module of the user.
"""

from __future__ import annotations

from fastmlp.commands import main

if __name__ == "__main__":
    main()
