"""Garbage collection of the server."""

import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY

# The server up to the turn in which it would wait for requests.
SERVE = """
import gc, sys, weakref
import uvicorn

class Node: ...

async def main_loop(self):
    seen = len(gc.get_objects())
    node = Node()
    node.itself, freed = node, weakref.ref(node)
    del node
    gc.collect()
    print(gc.get_freeze_count() > 20 * seen, freed() is None)

uvicorn.Server.main_loop = main_loop
from app.__main__ import cli
cli(["serve", "--port", "0"])
"""


def test_the_server_collects_garbage_but_not_among_what_it_has_started_with(tmp_path: Path) -> None:
    environment = {"PATH": "", "EARMARK_HOME": str(tmp_path), "EARMARK_LOG_LEVEL": "error"}
    command = [sys.executable, "-c", SERVE]
    output = subprocess.check_output(command, cwd=REPOSITORY, env=environment, text=True, timeout=200)
    assert output.split() == ["True", "True"]
