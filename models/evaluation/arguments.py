"""Options that several commands of `python -m models evaluate` have."""

from pathlib import Path
from typing import Annotated

import typer

Corpus = Annotated[Path, typer.Option(help="Folder with the corpus, whose valid split is used.")]
Cache = Annotated[Path, typer.Option(help="Where decoded clips are kept.")]
WeightsOrRun = Annotated[str, typer.Option(help="A shipped model's name, a model's folder, or a separator's run.")]
Scores = Annotated[
    list[Path] | None,
    typer.Option("--scores", help="Folder of MIDI files, again for each. Default: those of Debian's packages."),
]
Bank = Annotated[Path, typer.Option(help="Sound bank, SF2.", dir_okay=False)]
Output = Annotated[Path | None, typer.Option(help="JSON file for the figures.", dir_okay=False)]
Plot = Annotated[Path | None, typer.Option(help="Picture, such as out.png.", dir_okay=False)]
DrawnRows = Annotated[Path, typer.Option(help="CSV file for the rows.", dir_okay=False)]
