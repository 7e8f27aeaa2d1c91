"""The README names every call of the API, and every code of its errors."""

import json
import re
from collections.abc import Iterator

import pytest

from app.errors import ClientGone, EarmarkError
from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
KINDS = ("separations", "detections", "queries")
CALLS = json.loads((REPOSITORY / "openapi.json").read_text(encoding="utf-8"))["paths"]


def named_paths() -> set[str]:
    """Return the paths in the first column of the table of calls, those that end alike written out."""
    table = README.partition("| call | does |")[2].partition("\n\n")[0]
    found: set[str] = set()
    for row in table.splitlines()[2:]:
        whole = ""
        for path in re.findall(r"`(?:GET |POST |DELETE )?(/[^`?]*)[^`]*`", row.split(" | ")[0]):
            if path.startswith("/v1/") or not whole.startswith("/v1/"):
                whole = path
                found.add(path)
            else:  # `/cancel`, beside `/v1/KIND/{job_id}/cancel`, or `/peaks`, beside `.../content`
                found.add(whole.rpartition("/")[0] + path)
    return {path.replace("/KIND", f"/{kind}") for path in found for kind in KINDS}


def codes() -> Iterator[str]:
    waiting = [EarmarkError]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if kind is not ClientGone:  # nobody is left to read it
            yield kind.code


@pytest.mark.parametrize("path", CALLS)
def test_every_call_is_in_the_table(path: str) -> None:
    assert path in named_paths()


@pytest.mark.parametrize("code", sorted(set(codes())))
def test_every_code_is_in_the_table(code: str) -> None:
    table = README.partition("| status | `code` | what to do |")[2].partition("\n\n")[0]
    assert f"`{code}`" in table
