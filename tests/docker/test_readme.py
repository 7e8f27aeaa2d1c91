"""What docker/README.md says of the settings is what the settings say."""

from pathlib import Path

import pytest

from app import settings_table
from tests.conftest import REPOSITORY

README = REPOSITORY / "docker" / "README.md"


def test_the_table_of_settings_is_the_settings() -> None:
    text = README.read_text(encoding="utf-8")
    written = text.partition(settings_table.BEGIN)[2].partition(settings_table.END)[0]
    assert written.strip() == settings_table.table(), "run: python -m app settings --into docker/README.md"


def test_a_document_without_marks_is_refused(tmp_path: Path) -> None:
    document = tmp_path / "README.md"
    document.write_text("nothing here\n")
    with pytest.raises(ValueError, match="no marks"):
        settings_table.write_into(document)
    assert document.read_text() == "nothing here\n"
