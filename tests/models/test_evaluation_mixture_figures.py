"""Every scene and kind of query, with a model whose figures are known: it lets a query's own band pass and no other."""

import io
import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from models.corpus.clips import Clips
from models.evaluation import mixture_figures, reporting_mixtures
from models.evaluation.model_under_test import ModelUnderTest
from models.evaluation.reports import comparison
from models.evaluation.reports.pictures import draw_gains
from models.evaluation.reports.summaries import Summary
from models.labels import find
from models.networks import unet
from models.options import SPEEDS, Quality
from models.queries.query import PAPER_RULES
from models.separation.long_recordings import Masking
from models.validation.rendering import Sounds
from tests.models import tones
from tests.models.bands import BANDS, bundle

ROWS = 24


@pytest.fixture(scope="module")
def clips() -> Clips:
    return tones.corpus()


@pytest.fixture(scope="module")
def mixture_rows(clips: Clips) -> dict[int, reporting_mixtures.MixtureRow]:
    return dict(enumerate(reporting_mixtures.draw(clips, tones.corpus("train"), ROWS)))


@pytest.fixture(scope="module")
def figures(clips: Clips, mixture_rows: dict[int, reporting_mixtures.MixtureRow]) -> mixture_figures.MixtureFigures:
    return mixture_figures.measure(
        ModelUnderTest(bundle(), "cpu"), mixture_rows, Sounds(clips), Sounds(tones.corpus("train"))
    )


@pytest.fixture(scope="module")
def summary(figures: mixture_figures.MixtureFigures) -> Summary:
    return Summary(figures, draws=200)


def deaf(band: int) -> ModelUnderTest:
    """A model that takes every query for one band."""
    subject = ModelUnderTest(bundle(), "cpu")
    subject.bundle.detector.embed = lambda waveforms: torch.eye(BANDS)[band].expand(len(waveforms), -1)
    return subject


def test_every_query_and_scene_is_measured(figures: mixture_figures.MixtureFigures) -> None:
    kinds = {name.rpartition("/")[0] for name in figures.values}
    assert kinds == {
        *(f"mixture/{query}" for query in mixture_figures.QUERIES),
        *(f"{scene}/{query}" for scene in ("clean", "silence", "three") for query in mixture_figures.MAIN_QUERIES),
        *("absent/example", "input", "oracle"),
    }


def test_a_model_that_separates_is_right_everywhere(figures: mixture_figures.MixtureFigures) -> None:
    for query in mixture_figures.QUERIES:
        gains = figures.values[f"mixture/{query}/si_sdri"]
        gains = gains[~np.isnan(gains)]
        assert len(gains)
        assert gains.min() > 10, query
        assert np.nanmax(figures.values[f"mixture/{query}/wrong"]) == 0
    assert np.nanmin(figures.values["clean/example/sdr"]) > 15
    assert np.nanmin(figures.values["silence/example/attenuation"]) > 15
    assert np.nanmin(figures.values["three/example/si_sdri"]) > 10
    assert figures.values["absent/example/attenuation"].min() > 10


def test_a_model_that_takes_the_wrong_sound_is_caught(
    clips: Clips, mixture_rows: dict[int, reporting_mixtures.MixtureRow], figures: mixture_figures.MixtureFigures
) -> None:
    """A model that ignores queries: right if its band is the target's, wrong if it is the interference's."""
    found = mixture_figures.measure(deaf(0), mixture_rows, Sounds(clips))
    sounds = Sounds(clips)
    speech = find("Speech").mid
    wrong = found.values["mixture/example/wrong"]
    for at, row in enumerate(found.rows):
        if sounds.clip(row.target).mid == speech:
            assert wrong[at] == 0
        if sounds.clip(row.interference).mid == speech:
            assert wrong[at] == 1
            assert found.values["mixture/example/si_sdri"][at] < -5
    assert {0.0, 1.0} <= set(wrong)
    # Its label's query is not heard, so that it is no worse than the other model's.
    assert np.array_equal(found.values["mixture/label/wrong"], figures.values["mixture/label/wrong"], equal_nan=True)


def test_rows_without_a_query_have_no_figures(
    clips: Clips, mixture_rows: dict[int, reporting_mixtures.MixtureRow], figures: mixture_figures.MixtureFigures
) -> None:
    labelled = ~np.isnan(figures.values["mixture/label/si_sdri"])
    assert [row.label != "Wind" for row in figures.rows] == labelled.tolist()  # of which the model has no embedding
    fewer = np.isnan(figures.values["mixture/four_examples/si_sdri"])
    assert [len(row.examples) < 4 for row in figures.rows] == fewer.tolist()
    nameless = bundle()
    nameless.class_embeddings = {}
    found = mixture_figures.measure(ModelUnderTest(nameless, "cpu"), {0: mixture_rows[0]}, Sounds(clips))
    assert not any("/label/" in name or "/trained/" in name for name in found.values)
    summary = Summary(found, draws=50)
    assert "label" not in summary.queries
    assert summary.tables("nameless")[0].row_count >= 4


def test_a_silent_example_leaves_its_rows_out(
    clips: Clips, mixture_rows: dict[int, reporting_mixtures.MixtureRow]
) -> None:
    strict = bundle()
    strict.config = {"query": strict.config["query"] | {"least_energy": 1e9}}
    found = mixture_figures.measure(ModelUnderTest(strict, "cpu"), mixture_rows, Sounds(clips))
    assert "mixture/example/si_sdri" not in found.values
    assert not np.isnan(found.values["mixture/label/si_sdri"]).all()


@pytest.mark.parametrize("quality", SPEEDS)
def test_a_subject_answers_as_its_separator_in_the_service(
    clips: Clips, mixture_rows: dict[int, reporting_mixtures.MixtureRow], quality: Quality
) -> None:
    subject = ModelUnderTest(bundle(), "cpu", quality)
    mixes = torch.from_numpy(
        np.stack(
            [reporting_mixtures.render(row, Sounds(clips)).mixture for row in mixture_rows.values() if row.seconds == 2]
        )
    )
    queries = torch.rand(len(mixes), BANDS)
    queries[1] = float("nan")
    (estimate,) = subject.estimates(mixes, [queries])
    for row in {*range(len(mixes))} - {1}:
        served = Masking(subject.bundle.separator, queries[[row]], speeds=SPEEDS[quality])(mixes[row, None, None])
        assert torch.allclose(estimate[row], next(served)[0], atol=1e-3)
    assert estimate[1].isnan().all()
    assert torch.isnan(subject.query(np.zeros(32_000, np.float32))).all()


def test_the_papers_separator_is_measured_by_its_own_rules(
    clips: Clips, mixture_rows: dict[int, reporting_mixtures.MixtureRow]
) -> None:
    """Of another shape and hop, and without embeddings of classes."""
    torch.manual_seed(0)
    whole = bundle()
    separator = unet.UNet(unet.HyperParameters(fft_size=512, query_size=BANDS, channels=(4, 8))).eval()
    paper = replace(whole, separator=separator, class_embeddings={}, config={"query": asdict(PAPER_RULES)})
    found = mixture_figures.measure(
        ModelUnderTest(paper, "cpu"), {number: mixture_rows[number] for number in range(4)}, Sounds(clips)
    )
    assert np.isfinite(found.values["mixture/example/si_sdri"]).any()
    assert not any("/label/" in name for name in found.values)


def test_rows_are_measured_alike_in_any_company(
    clips: Clips, mixture_rows: dict[int, reporting_mixtures.MixtureRow], figures: mixture_figures.MixtureFigures
) -> None:
    alone = mixture_figures.measure(ModelUnderTest(bundle(), "cpu"), {10: mixture_rows[10]}, Sounds(clips))
    for name, values in alone.values.items():
        assert values[0] == pytest.approx(figures.values[name][10], abs=0.05), name


def test_the_summary_brings_rows_together(figures: mixture_figures.MixtureFigures, summary: Summary) -> None:
    gains = figures.values["mixture/example/si_sdri"]
    mean = summary.means["mixture/example/si_sdri"]
    assert mean.value == pytest.approx(gains.mean())
    assert mean.low < mean.value < mean.high
    assert summary.lowest["mixture/example/si_sdri"].value <= summary.medians["mixture/example/si_sdri"].value
    assert sum(of["example"].rows for of in summary.halves.values()) == ROWS
    assert set(summary.classes["example"]) == set(tones.LABELS)
    assert list(summary.classes["example"].values()) == sorted(
        summary.classes["example"].values(), key=lambda of: -of["si_sdri"].value
    )
    assert summary.over_one["four_examples"].rows == sum(len(row.examples) >= 4 for row in figures.rows)
    level = summary.means["mixture/own/sdr"].value
    assert level == pytest.approx((figures.values["mixture/own/sdri"] + figures.values["input/sdr"]).mean())


def test_tables_fit_a_terminal_and_the_picture_is_drawn(summary: Summary, tmp_path: Path) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    for table in summary.tables("bands@1"):
        console.print(table)
    shown = console.export_text()
    assert "own segment" in shown and "label" in shown and "Siren" in shown
    assert "[95 %]" in shown and "…" not in shown
    draw_gains(summary, tmp_path / "gains.png", "bands@1")
    assert (tmp_path / "gains.png").stat().st_size > 10_000


def write_json(summary: Summary, model: str, path: Path, digest: str = "d") -> Path:
    path.write_text(json.dumps({"model": model, "list": digest} | summary.as_json()))
    return path


def test_models_are_compared_row_by_row(
    clips: Clips, mixture_rows: dict[int, reporting_mixtures.MixtureRow], summary: Summary, tmp_path: Path
) -> None:
    some = {number: mixture_rows[number] for number in range(4, 16)}
    worse = Summary(mixture_figures.measure(deaf(1), some, Sounds(clips)), draws=50)
    first = comparison.read(write_json(worse, "deaf@1", tmp_path / "deaf.json"))
    second = comparison.read(write_json(summary, "bands@1", tmp_path / "bands.json"))
    compared = {one.figure: one for one in comparison.compare(first, second)}
    gain = compared["mixture/example/si_sdri"]
    assert gain.difference.rows == gain.first.rows == 12
    assert gain.difference.value == pytest.approx(gain.second.value - gain.first.value)
    assert gain.difference.low > 0
    assert compared["mixture/example/wrong"].difference.value < 0
    back = {one.figure: one for one in comparison.compare(second, first)}["mixture/example/si_sdri"]
    assert back.difference.value == pytest.approx(-gain.difference.value)
    assert comparison.as_json(first, second, list(compared.values()))["figures"]["mixture/example/si_sdri"]
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(comparison.table(first, second, list(compared.values())))
    assert "mixture/example/si_sdri" in console.export_text()


def test_a_model_does_not_differ_from_itself(summary: Summary, tmp_path: Path) -> None:
    own = comparison.read(write_json(summary, "bands@1", tmp_path / "bands.json"))
    for one in comparison.compare(own, own):
        assert one.difference.value == 0
        assert one.better == 0


def test_figures_that_do_not_pair_are_refused(summary: Summary, tmp_path: Path) -> None:
    own = comparison.read(write_json(summary, "bands@1", tmp_path / "bands.json"))
    other = comparison.read(write_json(summary, "bands@1", tmp_path / "other.json", digest="e"))
    with pytest.raises(ValueError, match="different lists"):
        comparison.compare(own, other)
    with pytest.raises(ValueError, match="no mixture in common"):
        comparison.compare(own, replace(own, numbers=[number + ROWS for number in own.numbers]))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": "a", "list": "d", "rows": {"number": [1], "values": 3}}'])
def test_other_files_are_no_figures(text: str, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(ValueError, match="not figures of mixtures"):
        comparison.read(tmp_path / "other.json")


def test_json_holds_no_nan(summary: Summary) -> None:
    text = json.dumps(summary.as_json(), allow_nan=False)
    rows = json.loads(text)["rows"]
    assert len(rows["number"]) == ROWS
    assert rows["values"]["mixture/label/si_sdri"].count(None) == rows["label"].count("Wind")
    assert not any(math.isnan(value) for value in rows["values"]["mixture/own/si_sdri"])
