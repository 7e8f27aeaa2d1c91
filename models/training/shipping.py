"""`ship`: a finished run as a model, with weights, class embeddings, presence rule and manifest."""

import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import checkpoints
from models.checkpoints import Bundle
from models.corpus import manifest
from models.plots import save_small
from models.queries.profiles import Profiles
from models.queries.query import BASE_RULES, QueryRules
from models.runs import assembly, class_queries, run_folder
from models.separation.presence import Rule, measure
from models.training.run_validation import validation_mixtures
from models.validation import mixtures
from models.validation.mixtures import Mixture
from models.validation.separation_figures import estimate_targets, queries_of

PRESENCE_WINDOW = 0.96  # seconds: a patch of the query encoder
RIDGE = 0.01  # penalty of the logistic regression, since 300 mixtures are few
CUT_SHARE = 0.05  # share of present targets that the gate may attenuate


def ship(run: Path, name: str, version: str, output: Path | None = None, blend: Sequence[str] = ()) -> Bundle:
    """Turn a separator's run into a model: weights, config, tables of the training clips and of the
    classes that can be asked for by name, and the run's curve if it has been validated.

    output: folder for the model, or None to put it among the shipped ones, by a `name` that none of them has.
    blend: models or runs whose weights are averaged with the run's, all alike, one named twice counting twice. The
    mean of a start and of runs that went apart from it generalises better to sounds that were not in training than any
    of them (Wortsman et al., arXiv 2109.01903 and 2203.05482). Raises ValueError for one of other sizes.

    Presence is fitted on every second validation mixture of the run, if it has any. Raises ValueError for the name of a
    shipped model.
    """
    if output is None and name in checkpoints.model_names():
        raise ValueError(f"{name} is shipped with the program, and would be lost: give --output, or another --name")
    made, clips, classes, log = assembly.assemble(run, name, version)
    if blend:
        states = [made.separator.state_dict(), *(run_folder.separator_weights(each, made.separator) for each in blend)]
        made.separator.load_state_dict(_mean(states))
    made.config |= _understood(made)
    rules = QueryRules(**made.config["query"])
    rows = validation_mixtures(run_folder.Place.of(run_folder.read_setup(run)), rules)
    if rows and made.config["preset"] != "paper":  # the paper's preset has no gate
        features, there = presence_features(made, rows, Rule(window_seconds=PRESENCE_WINDOW, level=rules.level))
        # The even rows of the committed list, even if some are left out: `evaluate` measures on the odd ones.
        place = {row: at for at, row in enumerate(mixtures.read())}
        fitted = [place.get(row.row, at) % 2 == 0 for at, row in enumerate(rows)]
        even = torch.tensor(fitted).repeat(2)  # of the present queries, then of the absent ones
        made.presence = asdict(fit_presence(features[even], there[even]))
    if output is None:
        folder, prefix = checkpoints.SHIPPED, f"{name}."
        checkpoints.write(made, folder / f"{name}.safetensors", folder / f"{name}.json", half=True)
    else:
        folder, prefix = output, ""
        checkpoints.save(made, folder, half=True)
    manifest.write(clips, "train", folder / f"{prefix}manifest.csv")
    class_queries.write(classes, folder / f"{prefix}classes.csv")
    if log:  # none before the first validation
        write_curve(log, folder / f"{prefix}training.csv", folder / f"{prefix}training.png")
    return made


def name_classes(weights: str, corpus: Path, ear: Path | None, cache: Path) -> Bundle:
    """Replace a model's class queries in its files, from a corpus's training clips; return the model.

    weights: a shipped model's name, or a folder. ear: the query encoder where it was trained, in place of the model's
    own, which is the same in float16: `cache` may hold its queries of the clips. Raises CheckpointInvalid.
    """
    made = checkpoints.load(weights)
    place = run_folder.Place.of({"place": {"corpus": corpus, "cache": cache} | made.config})
    query_encoder = made.detector if ear is None else run_folder.load_query_encoder(ear, place.held_out)
    clips = place.clips("train")
    vectors = place.embeddings(query_encoder, clips, QueryRules(**made.config["query"]))
    classes = assembly.name_classes(made, vectors, clips)
    if weights in checkpoints.model_names():
        folder, prefix = checkpoints.SHIPPED, f"{weights}."
        checkpoints.write(made, folder / f"{weights}.safetensors", folder / f"{weights}.json", half=True)
    else:
        folder, prefix = Path(weights), ""
        checkpoints.save(made, folder, half=True)
    class_queries.write(classes, folder / f"{prefix}classes.csv")
    return made


def _understood(made: Bundle) -> dict[str, list[str]]:
    """Return the entry of the config that lists the earlier versions whose queries a new one understands: those of the
    shipped model of its name, if the query encoder is the same. The prior that corrects examples may differ a little,
    being fitted to other clips."""
    if made.name not in checkpoints.model_names():
        return {}
    before = checkpoints.load(made.name)
    encoders = [model.detector.state_dict() for model in (before, made)]
    same = made.config["query"] == before.config["query"] and encoders[0].keys() == encoders[1].keys()
    if not same or not all(_equal(entry, encoders[1][name]) for name, entry in encoders[0].items()):
        return {}
    return {"queries_of": [*before.queries_of, before.version]}


def _equal(shipped: Tensor, made: Tensor) -> bool:
    """Return whether an entry was made of the other, in float16 where it is a matrix."""
    return shipped.shape == made.shape and torch.allclose(shipped.float(), made.float(), rtol=1e-3, atol=1e-4)


def _mean(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {
        name: torch.stack([state[name] for state in states]).mean(0) if entry.is_floating_point() else entry
        for name, entry in states[0].items()
    }


def presence_features(made: Bundle, rows: list[Mixture], rule: Rule) -> tuple[Tensor, Tensor]:
    """Return features (2N, F) of the rows' present queries, then their absent ones, and the truth (2N,), 1 or 0."""
    query_encoder, profiles = made.detector, Profiles(made.prior, made.clip_embeddings)

    def embed_profiles(windows: Tensor) -> Tensor:
        return profiles(query_encoder.embed(windows))

    measured = []
    for kind in ("query", "absent"):
        queries = queries_of(query_encoder, rows, kind, prior=made.prior)
        estimates = estimate_targets(made.separator, rows, queries)
        with torch.inference_mode():
            measured += [
                measure(embed_profiles, query_encoder.rate, rule, query, torch.from_numpy(row.mixture), estimate)
                for query, row, estimate in zip(profiles(queries), rows, estimates, strict=True)
            ]
    there = torch.cat([torch.ones(len(rows)), torch.zeros(len(rows))])
    return torch.stack(measured), there


def fit_presence(features: Tensor, there: Tensor) -> Rule:
    """Fit the rule by logistic regression, Newton's method; 5 % of present targets lie below the gate's threshold."""
    centre, spread = features.mean(0), features.std(0)
    inputs = torch.cat([(features - centre) / spread, torch.ones(len(features), 1)], dim=1).double()
    weights = torch.zeros(inputs.shape[1], dtype=torch.float64)
    penalty = RIDGE * len(inputs) * torch.eye(len(weights), dtype=torch.float64)
    penalty[-1, -1] = 0
    for _ in range(30):
        odds = torch.sigmoid(inputs @ weights)
        gradient = inputs.T @ (odds - there) + penalty @ weights
        curvature = inputs.T @ (inputs * (odds * (1 - odds))[:, None]) + penalty
        weights = weights - torch.linalg.solve(curvature, gradient)
    slopes = weights[:-1] / spread.double()
    rule = Rule(
        weights=tuple(slopes.tolist()),
        bias=(weights[-1] - slopes @ centre.double()).item(),
        window_seconds=PRESENCE_WINDOW,
        level=BASE_RULES.level,
    )
    present = torch.tensor([rule.presence(row) for row in features[there > 0]])
    opens = present.quantile(CUT_SHARE).item()
    return Rule(rule.weights, rule.bias, rule.window_seconds, rule.level, opens, opens / 2)


def write_curve(rows: list[dict[str, Any]], table: Path, picture: Path) -> None:
    """Write the run's log as a table and a picture: improvement on validation mixtures, absent queries' level, loss."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[-1]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    hours = [row["audio_hours"] for row in rows]
    figure, (gains, levels) = pyplot.subplots(1, 2, figsize=(9, 3), layout="constrained")
    for name, label in (("si_sdri", "SI-SDR"), ("sdri", "SDR"), ("right_si_sdri", "SI-SDR, right sound")):
        if name in rows[-1]:
            gains.plot(hours, [row[name] for row in rows], marker=".", label=label)
            gains.legend()
    gains.set(xlabel="hours of audio learned from", ylabel="improvement, dB")
    if "absent" in rows[-1]:
        levels.plot(hours, [-row["absent"] for row in rows], marker=".", label="absent query, dB in the mixture")
    levels.plot(hours, [row["loss"] for row in rows], marker=".", label="training loss")
    levels.set(xlabel="hours of audio learned from")
    levels.legend()
    save_small(figure, picture, dpi=90)
    pyplot.close(figure)
