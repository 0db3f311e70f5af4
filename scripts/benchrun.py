"""benchrun - starts tests/bench/main.py, which says what it does."""

from __future__ import annotations

import sys

import lablib

sys.path.append(str(lablib.REPO / "tests"))
from bench import main

if __name__ == "__main__":
    sys.exit(main.main(sys.argv[1:]))
