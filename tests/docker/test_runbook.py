"""The runbook in docker/README.md: a section for every alert, links that lead somewhere, commands that can be run."""

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

README = (DOCKER / "README.md").read_text(encoding="utf-8")
RUNBOOK = README.partition("\n## Runbook\n")[2].partition("\n## ")[0]
SECTIONS = dict(re.findall(r"^### (.+?)\n(.*?)(?=^### |\Z)", RUNBOOK, re.MULTILINE | re.DOTALL))
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
        assert rule["annotations"]["runbook_url"] == f"docker/README.md#{anchor(rule['alert'])}"
        assert re.findall(r"^\* \*\*(\w+)\*\*(?:, by code)?:", SECTIONS[rule["alert"]], re.MULTILINE) == [
            "Means",
            "Look",
            "Do",
        ], rule["alert"]


@pytest.mark.parametrize("file", ["README.md", "docker/README.md"])
def test_links_lead_to_sections(file: str) -> None:
    text = (REPOSITORY / file).read_text(encoding="utf-8")
    headings = {
        path: {anchor(heading) for heading in re.findall(r"^#+ (.+)$", (REPOSITORY / path).read_text(), re.MULTILINE)}
        for path in ("README.md", "docker/README.md")
    }
    links = re.findall(r"\]\(((?:docker/README\.md)?)#([\w-]+)\)", text)
    assert links and not [link for path, link in links if link not in headings[path or file]]


def test_the_runbooks_commands_are_commands() -> None:
    assert len(commands()) > 40
    blocks = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
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
