"""Examples to queries: silence, levels, coherence, files."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.errors import NothingLeft, QueryModelMismatch, SilentQuery
from models.queries.query import BASE_RULES, LABEL_WEIGHT, PAPER_RULES, Query, cut, embed, embed_apart, surroundings

RATE = 32_000


class Bands:
    """An embedder whose answer can be worked out by hand: energy in eight bands of a window."""

    rate = RATE
    embedding_size = 8

    def embed(self, waveforms: Tensor) -> Tensor:
        power = torch.fft.rfft(waveforms).abs().square()[:, 1:]
        return torch.stack([band.sum(1) for band in power[:, : power.shape[1] // 8 * 8].chunk(8, dim=1)], dim=1).sqrt()


def tone(frequency: float, seconds: float, level: float = 0.1) -> Tensor:
    return level * torch.sin(2 * torch.pi * frequency * torch.arange(int(seconds * RATE)) / RATE)


@pytest.mark.parametrize("rules", [BASE_RULES, PAPER_RULES])
@pytest.mark.parametrize("seconds", [0.1, 0.5, 0.96, 1.99, 2.0, 7.1])
def test_any_length_from_a_tenth_of_a_second_makes_a_query(rules, seconds: float) -> None:
    query = embed(Bands(), [tone(500, seconds)], rules, "tests@1")
    assert query.vector.shape == (8,)
    assert 0 < query.seconds_used <= seconds + 1e-6
    assert query.vector.argmax() == 0


@pytest.mark.parametrize("rules", [BASE_RULES, PAPER_RULES])
@pytest.mark.parametrize(
    ("recording", "code", "words"),
    [
        (torch.zeros(RATE), "audio_silent", "the example is silent"),
        (torch.zeros(0), "request_invalid", "lasts 0.000 s, which is too short: at least 0.1 s"),
        (tone(500, 0.05), "request_invalid", "lasts 0.050 s, which is too short: at least 0.1 s"),
    ],
    ids=["zeros", "empty", "short"],
)
def test_silence_and_crumbs_are_typed_errors(rules, recording: Tensor, code: str, words: str) -> None:
    with pytest.raises(SilentQuery, match=words) as raised:
        embed(Bands(), [recording], rules, "tests@1")
    assert raised.value.code == code


def test_paper_leaves_out_windows_by_absolute_energy() -> None:
    recording = torch.cat([tone(500, 2, 0.1), tone(500, 2, 1e-4), tone(500, 2, 0.1)])
    assert len(cut(recording, RATE, PAPER_RULES).waveforms) == 2
    with pytest.raises(SilentQuery):
        cut(recording * 1e-3, RATE, PAPER_RULES)


def test_base_embeds_quiet_and_loud_examples_alike() -> None:
    recording = torch.cat([tone(500, 2), torch.zeros(RATE), tone(900, 1)])
    loud, quiet = (embed(Bands(), [recording * gain], BASE_RULES, "tests@1") for gain in (1.0, 1e-3))
    assert torch.allclose(loud.vector, quiet.vector, rtol=1e-4)
    assert loud.seconds_used == quiet.seconds_used


def test_recordings_weigh_the_same_whatever_their_length() -> None:
    low, high = tone(500, 8), tone(9_000, 1)
    both = embed(Bands(), [low, high], BASE_RULES, "tests@1").vector
    apart = [embed(Bands(), [one], BASE_RULES, "tests@1").vector for one in (low, high)]
    assert torch.allclose(both, torch.stack(apart).mean(0), rtol=1e-4)


def test_examples_that_disagree_are_warned_about() -> None:
    same = embed(Bands(), [tone(500, 2), tone(510, 2)], BASE_RULES, "tests@1")
    scattered = embed(Bands(), [tone(f, 2) for f in (500, 3_000, 7_000, 11_000, 15_000)], BASE_RULES, "tests@1")
    assert same.coherence > 0.99 and not same.warnings
    assert scattered.coherence < 0.5 and scattered.warnings


def test_without_takes_away_what_the_other_query_holds() -> None:
    low, high = (embed(Bands(), [tone(f, 2)], BASE_RULES, "tests@1") for f in (500, 9_000))
    both = embed(Bands(), [tone(500, 2) + tone(9_000, 2)], BASE_RULES, "tests@1")
    left = both.without(high)
    assert torch.cosine_similarity(left.vector, high.vector, dim=0).abs() < 1e-4
    assert torch.cosine_similarity(left.vector, low.vector, dim=0) > 0.99

    with pytest.raises(NothingLeft):
        high.without(replace(high, vector=high.vector * 3))


def test_a_query_survives_its_file(tmp_path: Path) -> None:
    query = embed(Bands(), [tone(500, 2)], BASE_RULES, "tests@1")
    query.save(tmp_path / "q.safetensors")
    again = Query.load(tmp_path / "q.safetensors", model="tests@1")
    assert torch.equal(query.vector, again.vector)
    assert (again.model, again.coherence, again.seconds_used) == (query.model, query.coherence, query.seconds_used)


def test_another_models_query_is_refused(tmp_path: Path) -> None:
    query = Query(torch.ones(8), "other@1")
    query.save(tmp_path / "q.safetensors")
    with pytest.raises(QueryModelMismatch, match="other@1"):
        Query.load(tmp_path / "q.safetensors", model="tests@1")
    with pytest.raises(QueryModelMismatch):
        Query(torch.ones(8), "tests@1").without(query)


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"not a query at all"])
def test_a_file_that_is_no_query_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "q.safetensors").write_bytes(content)
    with pytest.raises(QueryModelMismatch):
        Query.load(tmp_path / "q.safetensors")


def test_a_mean_is_in_the_domain_of_signed_roots_and_keeps_the_worst_of_its_parts() -> None:
    one = Query(torch.tensor([4.0, 0.0, -1.0]), "tests@1", 0.4, 2.0, ["they differ"])
    other = Query(torch.tensor([16.0, 9.0, 1.0]), "tests@1", 1.0, 0.5)
    mean = Query.mean([(one, 3.0), (other, 1.0)])
    torch.testing.assert_close(mean.vector, torch.tensor([2.5**2, 0.75**2, -(0.5**2)]))
    assert (mean.model, mean.coherence, mean.seconds_used, mean.warnings) == ("tests@1", 0.4, 2.5, ["they differ"])
    assert torch.equal(Query.mean([(one, 0.2)]).vector, one.vector)
    both = one.with_label(other)
    torch.testing.assert_close(both.vector, Query.mean([(one, 1 - LABEL_WEIGHT), (other, LABEL_WEIGHT)]).vector)


def test_a_mean_of_nothing_without_weight_or_of_two_models_is_refused() -> None:
    one = Query(torch.ones(3), "tests@1")
    for parts in ([], [(one, 0.0)], [(one, 1.0), (one, -1.0)], [(one, float("nan"))]):
        with pytest.raises(ValueError, match="positive weights"):
            Query.mean(parts)
    with pytest.raises(QueryModelMismatch):
        one.with_label(Query(torch.ones(3), "tests@2"))


@pytest.mark.parametrize(
    ("spans", "duration", "expected"),
    [
        ([(10, 12)], 60, [(5, 10), (12, 17)]),
        ([(0, 2)], 3, [(2, 3)]),
        ([(0, 3)], 3, []),
        ([(2, 4), (7, 8)], 9, [(0, 2), (4, 7), (8, 9)]),
        ([(5, 7), (6, 9)], 30, [(0, 5), (9, 14)]),
        ([(1, 2), (50, 51)], 51.05, [(0, 1), (2, 7), (45, 50)]),
    ],
)
def test_surroundings_of_spans(
    spans: list[tuple[float, float]], duration: float, expected: list[tuple[float, float]]
) -> None:
    found = surroundings(spans, duration)
    merged: list[tuple[float, float]] = []
    for start, end in found:
        assert not any(start < stop and begin < end for begin, stop in spans)
        if merged and merged[-1][1] == start:
            start = merged.pop()[0]
        merged.append((start, end))
    assert merged == expected


def test_a_span_is_taken_apart_from_other_sounds_but_not_from_its_own() -> None:
    sound, other = torch.tensor([4.0, 1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 4.0, 0.0])
    span, around = Query(sound + other, "tests@1"), Query(other, "tests@1")
    apart = span.apart_from(around).vector
    assert apart[0] == 4 and apart[2] == 0 and apart[1] < 1
    assert torch.allclose(span.apart_from(Query(2 * (sound + other), "tests@1")).vector, span.vector)
    signed = Query(-sound, "tests@1")
    assert signed.apart_from(around) is signed


def test_a_query_apart_from_its_surroundings_is_the_one_of_both_embedded_alone() -> None:
    spans, around = [tone(500, 2.0), tone(500, 1.0) + tone(9000, 1.0)], tone(9000, 6.0)
    own, rest = embed(Bands(), spans, BASE_RULES, "tests@1"), embed(Bands(), [around], BASE_RULES, "tests@1")
    made, expected = embed_apart(Bands(), spans, around, BASE_RULES, "tests@1"), own.apart_from(rest)
    torch.testing.assert_close(made.vector, expected.vector)
    assert not torch.allclose(made.vector, own.vector)
    assert (made.coherence, made.seconds_used) == (pytest.approx(own.coherence), own.seconds_used)
    for nothing in (torch.zeros(RATE), torch.zeros(0)):
        assert torch.equal(embed_apart(Bands(), spans, nothing, BASE_RULES, "tests@1").vector, own.vector)
    with pytest.raises(SilentQuery, match="span 2 is silent"):
        embed_apart(Bands(), [spans[0], torch.zeros(RATE)], around, BASE_RULES, "tests@1")


def test_a_sketch_embeds_the_surroundings_and_nothing_else() -> None:
    spans, around, sketched = [tone(500, 2.0), tone(500, 1.0) + tone(9000, 1.0)], tone(9000, 6.0), []

    def sketch(windows: torch.Tensor) -> torch.Tensor:
        sketched.append(len(windows))
        return Bands().embed(windows)

    made = embed_apart(Bands(), spans, around, BASE_RULES, "tests@1", sketch=sketch)
    expected = embed_apart(Bands(), spans, around, BASE_RULES, "tests@1")
    assert sum(sketched) == len(cut(around, RATE, BASE_RULES).waveforms)
    torch.testing.assert_close(made.vector, expected.vector)
    assert (made.coherence, made.seconds_used) == (pytest.approx(expected.coherence), expected.seconds_used)
