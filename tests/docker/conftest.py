"""Fixtures for the tests of the deployment files."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import programs


@pytest.fixture(scope="session")
def program() -> Callable[[str], Path]:
    """Return a function that finds a program by name; the test is skipped if it is not installed."""

    def find(name: str) -> Path:
        path = programs.find(name)
        if path is None:
            pytest.skip(f"{name} is not installed, and `make tools` could not fetch it")
        return path

    return find
