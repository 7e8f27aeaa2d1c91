"""The contract as a document, kept at the top of the repository: a change of it is seen where changes are read."""

from pathlib import Path

from typer.testing import CliRunner

from app.__main__ import cli
from tests.conftest import REPOSITORY


def test_the_contract_is_the_one_that_was_agreed(tmp_path: Path) -> None:
    assert CliRunner().invoke(cli, ["openapi", str(tmp_path / "now.json")]).exit_code == 0
    kept = (REPOSITORY / "openapi.json").read_text(encoding="utf-8")
    assert (tmp_path / "now.json").read_text(encoding="utf-8") == kept, "run `python -m app openapi` if it is meant"
