"""`python -m fastmlp`, the same as the console script."""

from __future__ import annotations

from fastmlp.commands import main

if __name__ == "__main__":
    main()
