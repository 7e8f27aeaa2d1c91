"""`python -m models evaluate ...`: each prints a table and writes JSON."""

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from models import checkpoints
from models.corpus.decoded import load
from models.evaluation import mixtures, separation
from models.evaluation.metrics import si_sdr
from models.labels import find
from models.presence import Rule, measure
from models.query import QueryRules

app = typer.Typer(no_args_is_help=True, help="Measure a model.")
console = Console()


@app.command("mixtures")
def evaluate_mixtures(
    corpus: Annotated[Path, typer.Option(help="Folder with the corpus's valid-*.tar.")],
    weights: Annotated[str, typer.Option(help="A shipped model's name or a folder.")] = "base",
    cache: Annotated[Path, typer.Option(help="Where decoded clips are kept.")] = Path(".cache"),
    output: Annotated[Path | None, typer.Option(help="JSON file for the figures.")] = None,
) -> None:
    """The 300 validation mixtures: two sources at 0 dB, the query from another source of the target's class."""
    bundle = checkpoints.load(weights)
    clips = load(corpus, "valid", cache, console.print)
    rows = list(mixtures.render(mixtures.read(), clips))
    rules = QueryRules(**bundle.config["query"])
    query, absent = (separation.queries_of(bundle.detector, rows, kind, rules) for kind in ("query", "absent"))
    measured = separation.figures(bundle.separator, rows, query, absent)
    figures = separation.summary(measured)
    targets, mixed = separation.stacked(rows, "target"), separation.stacked(rows, "mixture")
    bound = si_sdr(separation.ideal(bundle.separator, rows), targets) - si_sdr(mixed, targets)
    figures["ideal_mask_si_sdri"] = bound.mean().item()
    mids = [find(row.row.label).mid for row in rows]
    labelled = [at for at, mid in enumerate(mids) if mid in bundle.class_embeddings]
    if labelled:
        asked = torch.stack([bundle.class_embeddings[mids[at]] for at in labelled])
        by_label = separation.figures(bundle.separator, [rows[at] for at in labelled], asked, absent[labelled])
        figures["label_si_sdri"] = by_label["si_sdri"].mean().item()
    if bundle.presence:
        figures["presence_auc"] = _presence(bundle, rows, query, absent)
    table = Table("figure", "value", title=f"{bundle.name}@{bundle.version}, {len(rows)} mixtures")
    for name, value in figures.items():
        table.add_row(name, f"{value:.2f}")
    console.print(table)
    classes = separation.by_class(measured["si_sdri"], [row.row.label for row in rows])
    console.print("best:  " + ", ".join(f"{label} {gain:.1f}" for label, gain in classes[:6]))
    console.print("worst: " + ", ".join(f"{label} {gain:.1f}" for label, gain in classes[-6:]))
    if output:
        rounded = {name: round(value, 3) for name, value in figures.items()}
        by_class = {label: round(gain, 2) for label, gain in classes}
        output.write_text(json.dumps(rounded | {"mixtures": len(rows), "si_sdri_by_class": by_class}, indent=2) + "\n")


@torch.inference_mode()
def _presence(
    bundle: checkpoints.Bundle, rows: list[mixtures.Mixture], query: torch.Tensor, absent: torch.Tensor
) -> float:
    """Area under the curve on the rows that the rule was not fitted on: the odd ones."""
    rule, scores = Rule.of(bundle.presence or {}), []
    odd = list(range(1, len(rows), 2))
    for asked in (query, absent):
        estimates = separation.separated(bundle.separator, [rows[at] for at in odd], asked[odd])
        for at, estimate in zip(odd, estimates, strict=True):
            mixture = torch.from_numpy(rows[at].mixture)
            measured = measure(bundle.detector.embed, bundle.detector.rate, rule, asked[at], mixture, estimate)
            scores.append(rule.presence(measured))
    there = torch.tensor([1.0] * len(odd) + [0.0] * len(odd))
    return separation.area_under_curve(torch.tensor(scores), there)
