"""`earmark`, as a program."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from app.command import COMMANDS, missing_extras, program
from tests.conftest import REPOSITORY


def earmark(
    *words: str, cwd: Path | None = None, environment: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    code = "import sys; sys.argv[0] = 'earmark'; from app.command import main; main()"
    given = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TERM": "dumb", **(environment or {})}
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=given, cwd=cwd)


def test_help_lists_the_commands_and_loads_nothing_heavy() -> None:
    said = earmark("--help").stdout
    assert "..." not in said.partition("Commands:")[2], "sentences are not cut"
    assert all(f"  {name} " in said for name in COMMANDS)
    code = "import sys, app.command; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    heavy = {"torch", "numpy", "models", "worker", "fastapi", "pydantic", "redis", "rich", "app.settings"}
    assert not heavy & set(loaded.stdout.split())


def test_help_of_groups_lists_whole_sentences() -> None:
    for words in (["serve"], ["keys"], ["jobs"], ["housekeeping"]):
        listed = earmark(*words, "--help", environment={"COLUMNS": "60"}).stdout.partition("Commands:")[2]
        assert listed and "..." not in listed, words
    assert "Delete jobs, in whatever state, with their stems and all else that they have stored." in " ".join(
        earmark("jobs", "--help").stdout.split()
    )


def test_the_version_is_told() -> None:
    assert earmark("--version").stdout == f"earmark {metadata.version('earmark')}\n"


def test_the_programs_call_themselves_as_the_user_did() -> None:
    assert earmark("separate").stderr.startswith("Usage: earmark separate ")
    assert earmark("keys", "create", "--help").stdout.strip().startswith("Usage: earmark keys create ")
    assert earmark("serve", "--help").stdout.strip().startswith("Usage: earmark serve ")


def test_the_words_after_a_command_are_the_programs() -> None:
    words = ["--", "-o", "my sounds"]
    assert program("separate", words) == [sys.executable, "-m", "models", "separate", *words]
    assert program("serve", ["--embedded"]) == [sys.executable, "-m", "app", "--embedded"]


def test_a_folder_of_the_user_with_our_names_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("raise SystemExit('not ours')")
    done = earmark("embed", "--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Make a query from examples" in done.stdout
    assert earmark("keys", "--help", cwd=tmp_path).returncode == 0
    assert earmark("separate", "nowhere.wav", "--label", "Dog", cwd=tmp_path).returncode == 2


def test_what_is_not_installed_is_named(tmp_path: Path) -> None:
    """Without site packages, but typer's."""
    bare = tmp_path / "site"
    bare.mkdir()
    site = Path(sys.modules["typer"].__file__ or "").parents[1]
    for name in ("typer", "click", "shellingham", "annotated_doc", "typing_extensions.py"):
        if (site / name).exists():
            (bare / name).symlink_to(site / name)
    code = "import sys; sys.argv[0] = 'earmark'; from app.command import main; main()"
    environment = {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{bare}"}
    for words, extras in (
        (["train"], "worker,train"),
        (["separate", "x"], "worker"),
        (["serve", "--embedded"], "embedded,worker"),
    ):
        done = subprocess.run(
            [sys.executable, "-S", "-c", code, *words], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 1
        assert f"pip install 'earmark[{extras}]'" in done.stderr
    assert missing_extras("serve", []) == []


def test_shells_complete_the_commands() -> None:
    asked = {"_EARMARK_COMPLETE": "complete_bash", "COMP_WORDS": "earmark se", "COMP_CWORD": "1"}
    assert earmark(environment=asked).stdout.split() == ["serve", "separate"]
    assert "--install-completion" in earmark("--help").stdout
