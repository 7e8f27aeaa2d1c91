"""The tables of the manual in docker/ that follow from the settings are up to date."""

from pathlib import Path

import pytest

from app.tables import document as tables
from tests.conftest import REPOSITORY
from tests.end_to_end import figures

MANUAL = REPOSITORY / "docker"


@pytest.mark.parametrize("name", tables.TABLES)
def test_tables_are_up_to_date(name: str) -> None:
    begin, end = tables.marks(name)
    table = tables.find_document(MANUAL, name).read_text(encoding="utf-8").partition(begin)[2].partition(end)[0]
    assert table.strip() == tables.TABLES[name](), "run: python -m app settings --into docker"


@pytest.mark.parametrize("name", figures.COLUMNS)
def test_each_table_of_measurements_has_a_place(name: str) -> None:
    assert tables.find_document(MANUAL, name).parent == MANUAL, "make soak writes it there, after hours"


def test_a_document_without_marks_is_rejected(tmp_path: Path) -> None:
    document = tmp_path / "README.md"
    document.write_text("\n".join(tables.marks("settings")) + "\n")
    before = document.read_text()
    with pytest.raises(ValueError, match="no marks <!-- budgets: begin -->"):
        tables.write_into(document)
    assert document.read_text() == before
