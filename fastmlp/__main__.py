"""Entry point of `python -m fastmlp`, equivalent to the console script `fastmlp`."""

from __future__ import annotations

from fastmlp.commands import main

if __name__ == "__main__":
    main()
