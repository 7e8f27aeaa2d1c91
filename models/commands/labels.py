"""`python -m models labels`: search among the classes of a model, as `GET /v1/labels` does it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from models.commands import Json, Weights
from models.console import console, print_json, progress_console

if TYPE_CHECKING:
    from models.labels import KnownClass


def labels(
    text: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT", help="A sound in words. Default: all classes, by name.")
    ] = None,
    limit: Annotated[int, typer.Option(help="How many classes to list.", min=1)] = 20,
    askable: Annotated[
        bool | None, typer.Option("--askable/--not-askable", help="Only classes that --label takes, or only others.")
    ] = None,
    weights: Weights = "base",
    as_json: Json = False,
) -> None:
    """Search the classes that --label takes. The best match is what --text asks for, if it is sure."""
    from models import checkpoints
    from models.named_queries import NamedQueries
    from models.queries.matching import Vocabulary

    words = " ".join(text or [])
    with progress_console.status("loading the model"):
        known = NamedQueries(checkpoints.load(weights)).classes()
    classes = Vocabulary(known)
    matches = [one for one in classes.search(words, len(known)) if askable in (None, one[0].askable)]
    refusal, near = classes.refusal(words)
    if as_json:
        print_json({"data": [_answer(*match) for match in matches[:limit]], "refusal": refusal, "near": near})
        return
    if matches:
        table = Table("class", "query", Column("below", overflow="fold"), "score")
        for one, score in matches[:limit]:
            table.add_row(one.label, one.source or "none: give an example", " > ".join(one.path[:-1]), f"{score:.2f}")
        console.print(table)
    if len(matches) > limit:
        progress_console.print(f"{len(matches) - limit} more: give --limit {len(matches)}")
    if refusal:
        progress_console.print(f"[yellow]{escape(refusal)}")


def _answer(one: KnownClass, score: float) -> dict[str, Any]:
    """Return a class with the field names of `GET /v1/labels`."""
    names = ("label", "mid", "slug", "path", "askable", "source")
    return {name: getattr(one, name) for name in names} | {"score": round(score, 3)}
