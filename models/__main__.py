"""python -m models: separate, detect, embed, convert, describe; corpus, train, ship, name-classes; evaluate ..."""

import sys

import typer

from models import bench, commands
from models.corpus import commands as corpus
from models.errors import MediaError, ModelsError
from models.experiments import ablations, class_names
from models.experiments.zero_shot_command import evaluate_app
from models.training import commands as training

_INTERRUPTED = 130

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Takes a recording and an example of a sound, and gives back that sound alone.",
)
app.command()(commands.separate)
app.command()(commands.detect)
app.command()(commands.embed)
app.command()(commands.convert)
app.command()(commands.describe)
app.command()(training.ship)
app.command("name-classes")(training.name_classes)
app.add_typer(training.app, name="train")
app.add_typer(corpus.app, name="corpus")
evaluate_app.command("names")(class_names.evaluate_names)
app.add_typer(evaluate_app, name="evaluate")
app.command()(ablations.ablate)
app.command()(bench.bench)


# Advice that the error itself cannot give, by its code.
_NEXT = {
    "checkpoint_invalid": "give --weights a model's name or a folder made by convert, or --separator the authors' file",
    "query_model_mismatch": "make the query again with embed and the same --weights",
    "corpus_invalid": "python -m models corpus --help lists the formats",
    "label_unknown": "give --query an example of the sound, or ask in your own words with --text",
    "text_unknown": "give --query an example of the sound",
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 1 for unusable input (one line on stderr), 2 for usage, 130 for
    Ctrl-C."""
    try:
        app(arguments, prog_name="python -m models")
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            sys.stderr.write("stopped\n")
        return end.code if isinstance(end.code, int) else 1
    except ModelsError as error:
        hint = f"; {_NEXT[error.code]}" if error.code in _NEXT else ""
        sys.stderr.write(f"error: {error.detail if isinstance(error, MediaError) else error}{hint}\n")
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
