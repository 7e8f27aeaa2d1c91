"""The contract as a document, kept beside this test: a change of it is seen where changes are read.

After a change that is meant: `python -m tests.app.test_openapi` writes it anew.
"""

import json
from pathlib import Path

from app.main import create_app
from app.settings import Settings

KEPT = Path(__file__).with_name("openapi.json")


def document(home: Path) -> str:
    return json.dumps(create_app(Settings(home=home)).openapi(), indent=1, ensure_ascii=False) + "\n"


def test_the_contract_is_the_one_that_was_agreed(tmp_path: Path) -> None:
    assert document(tmp_path) == KEPT.read_text(), "run `python -m tests.app.test_openapi` if the change is meant"


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        KEPT.write_text(document(Path(folder)))
