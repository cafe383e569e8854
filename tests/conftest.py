"""Models shared by the tests."""

from __future__ import annotations

import os

import pytest

# Tests run in several processes; threads of their own would only be in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def smollm2():
    """The default model, obtained on first use and loaded once a session."""
    from command_line import loaded

    return loaded("smollm2")
