"""python -m models: separate, detect, embed, labels; convert, describe; corpus, train, ship, name-classes; ..."""

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from models.compute import threads
from models.compute.allocator import keep_freed_memory, use_huge_pages
from models.errors import MediaError, ModelsError

_USAGE, _INTERRUPTED = 2, 130
_STYLE: dict[str, Any] = {"add_completion": False, "pretty_exceptions_enable": False, "rich_markup_mode": None}
# The module that has a command, its name there, and the first sentence of its help. Modules are imported when their
# command runs, since torch takes a second and what training needs two more.
COMMANDS = {
    "separate": (
        "models.commands.separate:separate",
        "Separate sounds from recordings by example, by class, by words, or by spans of the recording.",
    ),
    "detect": (
        "models.commands.detect:detect",
        "Detect the sounds in recordings: tags, and events with their start and end.",
    ),
    "embed": ("models.commands.embed:embed", "Make a query from examples of a sound and save it for separate --query."),
    "labels": ("models.commands.labels:labels", "Search the classes that --label takes."),
    "convert": (
        "models.commands.model:convert",
        "Convert the authors' files to a folder for --weights, without pickles.",
    ),
    "describe": ("models.commands.model:describe", "Describe a model: its version and classes."),
    "ship": (
        "models.training.commands:ship",
        "Make a model of a run: averaged weights in float16 and int8, class embeddings, presence rule, manifest.",
    ),
    "name-classes": (
        "models.training.commands:name_classes",
        "Make the queries of a model's classes anew, from the clips of a corpus; its networks and all else stay.",
    ),
    "train": ("models.training.commands:app", "Train a detector, and a separator with it as query encoder."),
    "corpus": (
        "models.corpus.commands:app",
        "Labelled audio: WebDataset shards, CSV files with audio (AudioSet's segments, or columns path,labels), "
        "packed HDF5, MUSDB18.",
    ),
    "evaluate": ("models.experiments.commands:evaluate_app", "Evaluate a model."),
    "ablate": (
        "models.experiments.ablations:ablate",
        "Train a small separator for each line of ablations.csv, for the same time, and compare them.",
    ),
    "bench": (
        "models.bench.commands:bench",
        "Measure speed and peak memory on this machine.",
    ),
}


class LazyCommand(TyperCommand):
    """A command, or a group of them, whose module is imported when it runs or shows its own help."""

    def __init__(self, name: str, place: str, sentence: str) -> None:
        super().__init__(name, help=sentence, short_help=sentence)
        self._place = place

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        return self.load().make_context(info_name, args, parent=parent, **extra)

    def load(self) -> Any:
        """Import and return the command itself."""
        module, _, name = self._place.partition(":")
        found = getattr(import_module(module), name)
        around = typer.Typer(**_STYLE)
        if isinstance(found, typer.Typer):
            around.add_typer(found, name=self.name)
            group: Any = typer.main.get_group(around).commands[self.name or ""]
            for command in group.commands.values():  # in full, where click would cut it at the line's end
                command.short_help = _first_sentence(command.help)
            return group
        around.command(self.name)(found)
        return typer.main.get_command(around)


def _first_sentence(text: str) -> str:
    start, stop, _ = " ".join(text.split()).partition(". ")
    return start + stop.rstrip()


class LazyGroup(TyperGroup):
    """The group of COMMANDS."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return LazyCommand(cmd_name, *COMMANDS[cmd_name]) if cmd_name in COMMANDS else None


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    **_STYLE,
)


@app.callback()
def models() -> None:
    """Take a recording and an example of a sound, and give back that sound alone."""


# Advice that the error itself cannot give, by its code.
_NEXT = {
    "checkpoint_invalid": "give --weights a model's name or a folder of convert or ship, or --separator a checkpoint",
    "query_model_mismatch": "make the query again with embed and the same --weights",
    "corpus_invalid": "corpus --help lists the formats",
    "label_unknown": "give --query an example of the sound, or ask in your own words with --text",
    "text_unknown": "give --query an example of the sound",
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 1 for unusable input (one line on stderr), 2 for usage, 130 for
    Ctrl-C."""
    try:
        app(arguments, prog_name=os.environ.get("_EARMARK_PROGRAM", "python -m models"))  # `earmark` sets it
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            sys.stderr.write("stopped\n")
        words = sys.argv[1:] if arguments is None else arguments
        dashed = next((word for word in words if word.startswith("-") and Path(word).is_file()), None)
        if end.code == _USAGE and dashed is not None:
            sys.stderr.write(f"For the file of this name, write ./{dashed}\n")
        return end.code if isinstance(end.code, int) else 1
    except ModelsError as error:
        text = error.detail if isinstance(error, MediaError) else str(error)
        if hint := _NEXT.get(error.code):
            text += f" {hint[0].upper()}{hint[1:]}." if text.endswith(("?", ".")) else f"; {hint}"
        sys.stderr.write(f"error: {text}\n")
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
    return 1


if __name__ == "__main__":
    threads.prepare()
    keep_freed_memory()
    use_huge_pages()
    sys.exit(main())
