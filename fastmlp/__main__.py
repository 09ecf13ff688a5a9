"""`python -m fastmlp`: the program, as the console script runs it."""

from __future__ import annotations

from fastmlp.commands import main

if __name__ == "__main__":
    main()
