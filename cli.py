"""The command line of a checkout: `python cli.py …`. Once installed, use `fastmlp …` or `python -m fastmlp …`.

`extract` needs an installation, at least an editable one, since fastmlp.cnn is in the folder cnn/. This file is not installed:
a module `cli` would shadow a user's own, or be shadowed by it.
"""

from __future__ import annotations

from fastmlp.commands import main

if __name__ == "__main__":
    main()
