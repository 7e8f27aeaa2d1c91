"""The runbook, docker/runbook.md: a section for every alert, links that lead somewhere, commands that can be run."""

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from app.__main__ import cli
from tests.conftest import REPOSITORY
from tests.docker.test_files import DOCKER, run

RUNBOOK = (DOCKER / "runbook.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", RUNBOOK, re.MULTILINE | re.DOTALL))
DOCUMENTS = ["README.md", *(f"docker/{path.name}" for path in sorted(DOCKER.glob("*.md")))]
RULES = [
    rule
    for group in yaml.safe_load((DOCKER / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
QUESTIONS = [
    "Whose job is it?",
    "Stop a client's job",
    "Where is it?",
    "Why is it slow?",
    "What fills the disk?",
    "A key was leaked",
    "Redis was lost",
    "Upgrade, and back",
]
SHORTHANDS = ("logs", "redis", "app", "query", "requests")
COMMAND = re.compile(rf"`((?:{'|'.join(SHORTHANDS)}|docker|kubectl|curl) [^`]+)`")


def anchor(heading: str) -> str:
    """Return a heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def commands() -> list[str]:
    """Return the commands in the text of the runbook; the bars of those in tables are escaped."""
    found = [command.replace("\\|", "|") for command in COMMAND.findall(RUNBOOK)]
    return [re.sub(r"\n *", " ", command) for command in found]


def test_every_alert_has_a_section_and_leads_there() -> None:
    assert list(SECTIONS) == [*QUESTIONS, *(rule["alert"] for rule in RULES)]
    for rule in RULES:
        assert rule["annotations"]["runbook_url"] == f"docker/runbook.md#{anchor(rule['alert'])}"
        assert re.findall(r"^\* \*\*(\w+)\*\*(?:, by code)?:", SECTIONS[rule["alert"]], re.MULTILINE) == [
            "Means",
            "Look",
            "Do",
        ], rule["alert"]


def test_the_runbook_begins_with_its_sections() -> None:
    listed = re.findall(r"\[([^]]+)\]\(#([\w-]+)\)", RUNBOOK.partition("\nFor the person")[0])
    assert listed == [(heading, anchor(heading)) for heading in SECTIONS]


@pytest.mark.parametrize("file", DOCUMENTS)
def test_links_lead_to_sections(file: str) -> None:
    texts = {path: (REPOSITORY / path).read_text(encoding="utf-8") for path in DOCUMENTS}
    headings = {
        (REPOSITORY / path).resolve(): {anchor(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}
        for path, text in texts.items()
    }
    here = REPOSITORY / file
    links = re.findall(r"\]\(([^)#:\s]*\.md)?(?:#([\w-]+))?\)", texts[file])
    found = [((here.parent / path).resolve() if path else here.resolve(), section) for path, section in links]
    assert found and not [link for link in found if not link[0].exists()]
    assert not [link for link in found if link[1] and link[0] in headings and link[1] not in headings[link[0]]]


def test_the_runbooks_commands_are_commands() -> None:
    assert len(commands()) > 40
    manual = "\n".join(path.read_text(encoding="utf-8") for path in DOCKER.glob("*.md"))
    blocks = re.findall(r"^```sh\n(.*?)^```", manual, re.MULTILINE | re.DOTALL)
    for text in [*commands(), *blocks]:
        done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, timeout=20)
        assert done.returncode == 0, f"{text}: {done.stderr}"
    assert {name for name in SHORTHANDS if f"\n{name}() " not in re.sub(r"\) +\{", ") {", RUNBOOK)} == set()


def test_the_runbooks_queries_are_queries(program: Callable[[str], Path], tmp_path: Path) -> None:
    queries = [shlex.split(command)[1] for command in commands() if command.startswith("query ")]
    assert len(queries) > 10
    rules = [{"record": f"runbook:query{number}", "expr": query} for number, query in enumerate(queries)]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "runbook", "rules": rules}]}))
    assert f"{len(rules)} rules found" in run(program("promtool"), "check", "rules", tmp_path / "rules.yml")


def test_the_runbooks_programs_have_these_commands() -> None:
    named = [command.split()[1:] for command in commands() if command.startswith("app ")]
    assert len(named) > 5
    for words in named:
        command: Any = typer.main.get_command(cli)
        for word in words:
            if not hasattr(command, "commands"):
                break  # arguments follow
            assert word in command.commands, " ".join(words)
            command = command.commands[word]
