"""The table of settings in docker/README.md is up to date."""

from pathlib import Path

import pytest

from app import settings_table
from tests.conftest import REPOSITORY

README = REPOSITORY / "docker" / "README.md"


def test_the_table_of_settings_is_up_to_date() -> None:
    text = README.read_text(encoding="utf-8")
    table = text.partition(settings_table.BEGIN)[2].partition(settings_table.END)[0]
    assert table.strip() == settings_table.table(), "run: python -m app settings --into docker/README.md"


def test_a_document_without_marks_is_rejected(tmp_path: Path) -> None:
    document = tmp_path / "README.md"
    document.write_text("nothing here\n")
    with pytest.raises(ValueError, match="no marks"):
        settings_table.write_into(document)
    assert document.read_text() == "nothing here\n"
