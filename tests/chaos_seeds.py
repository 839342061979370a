"""How often every cell of the matrix of kills is run, each time at other moments."""

import os

import pytest

SHORT = 0
"""The seed of `make test`."""
TIMES = int(os.environ.get("BALSA_CHAOS_SEEDS", "1"))
IN_CHAOS = [pytest.param(seed, marks=pytest.mark.chaos) for seed in range(1, TIMES + 1)]
"""The seeds of `make chaos`."""

in_chaos = pytest.mark.parametrize("seed", IN_CHAOS)
in_chaos_and_once_always = pytest.mark.parametrize("seed", [SHORT, *IN_CHAOS])
