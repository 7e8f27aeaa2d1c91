"""`openapi.json` at the top of the repository is the document that the application generates."""

from pathlib import Path

from typer.testing import CliRunner

from app.__main__ import cli
from tests.conftest import REPOSITORY


def test_the_committed_openapi_document_is_current(tmp_path: Path) -> None:
    assert CliRunner().invoke(cli, ["openapi", str(tmp_path / "generated.json")]).exit_code == 0
    committed = (REPOSITORY / "openapi.json").read_text(encoding="utf-8")
    assert (tmp_path / "generated.json").read_text(encoding="utf-8") == committed, "run `python -m app openapi`"
