"""What checks the deployment's files."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import programs


@pytest.fixture(scope="session")
def program() -> Callable[[str], Path]:
    """Finds a program that is not Python's; the test is skipped where it cannot be had."""

    def find(name: str) -> Path:
        path = programs.found(name)
        if path is None:
            pytest.skip(f"{name} is not installed, and `make tools` could not fetch it")
        return path

    return find
