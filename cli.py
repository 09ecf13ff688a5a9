"""The program of this checkout, as `python cli.py …`; with an installation it is `fastmlp …` or `python -m fastmlp …`.

Not installed: an installed module `cli` would run in place of a user's own, or the user's in place of ours.
"""

from __future__ import annotations

from fastmlp.commands import main

if __name__ == "__main__":
    main()
