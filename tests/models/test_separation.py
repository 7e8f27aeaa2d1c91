from fractions import Fraction
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.errors import Cancelled, FormatUnsupported
from models.networks import Separator
from models.options import SPEEDS, SeparationOptions
from models.separation.long_recordings import CrossFade, Masking, Source, Windows, cut, estimates, stems
from models.separation.speeds import mean_estimate, play
from tests.models.bands import BANDS, BandSeparator, tone

RATE = 32000
ALL, NONE = torch.ones(1, BANDS), torch.zeros(1, BANDS)


def noise(channels: int, frames: int, seed: int = 0) -> Tensor:
    return torch.randn(channels, frames, generator=torch.Generator().manual_seed(seed)) * 0.1


def source(samples: Tensor, rate: int, block: int = 5000) -> Source:
    return Source(rate, samples.shape[0], samples.shape[1], lambda: samples.split(block, dim=1))


def separate(
    samples: Tensor,
    rate: int,
    queries: Tensor,
    windows: Windows,
    block: int = 5000,
    separator: type[BandSeparator] = BandSeparator,
    **options,
) -> Tensor:
    masking = Masking(cast(Separator, separator()), queries, **options)
    blocks: list[list[Tensor]] = [[] for _ in queries]
    for query, stem in stems(source(samples, rate, block), masking, windows, RATE):
        blocks[query].append(stem)
    return torch.stack([torch.cat(of_query, dim=1) for of_query in blocks])


def in_seconds(window: float, context: float, overlap: float) -> Windows:
    return Windows.of(cast(Separator, BandSeparator()), SeparationOptions(window, context, overlap))


class Lengths(BandSeparator):
    """Its mask is 1 for windows of one length, 0 for those that are played faster or slower."""

    def predict(self, magnitude: Tensor, condition: Tensor) -> Tensor:
        mask = float(magnitude.shape[1] == WINDOWS[4].size // self.hop + 1)
        return torch.full((len(condition), *magnitude.shape[1:]), mask)


class Loud(BandSeparator):
    """Its mask is 1 where the mixture is within 20 dB of the loudest, wherever and however high that is."""

    def predict(self, magnitude: Tensor, condition: Tensor) -> Tensor:
        loudest = magnitude.amax((1, 2), keepdim=True)
        return (magnitude > loudest / 10).float().expand(len(condition), -1, -1)


WINDOWS = [
    in_seconds(2, 0, 0),
    in_seconds(1, 0.1, 0),
    in_seconds(1, 0, 0.2),
    in_seconds(1, 0.2, 0.3),
    in_seconds(0.5, 0.05, 0.2),
    in_seconds(10, 0.5, 0.25),
]


@pytest.mark.parametrize("windows", WINDOWS, ids=lambda w: f"{w.size}-{w.context}-{w.overlap}")
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("frames", [1600, 31999, 32000, 32001, 77777])
def test_a_mask_of_ones_returns_the_mixture(windows, channels, frames):
    mixture = noise(channels, frames)
    stem = separate(mixture, RATE, ALL, windows)
    assert stem.shape == (1, channels, frames)
    assert (stem[0] - mixture).abs().max() <= 1e-5 * mixture.abs().max()


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(3, 40),
    context=st.integers(0, 10),
    overlap=st.integers(0, 20),
    longer=st.integers(0, 5),
    frames=st.integers(1, 20000),
    block=st.integers(100, 9000),
)
def test_windows_of_any_layout_put_the_recording_together_again(size, context, overlap, longer, frames, block):
    hop = 100
    try:
        windows = Windows(size * hop, context * hop, overlap * hop, longer * hop)
    except ValueError:
        assert size - 2 * context - overlap < max(overlap, 0.01)
        return
    mixture = noise(1, frames)
    pieces = list(cut(mixture.split(block, dim=1), 1, windows, 1600))
    assert len(pieces) == windows.count(frames)
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    fade = CrossFade(windows, 1)
    kept = [piece.samples[:, windows.context :][:, : piece.core] for piece in pieces]
    joined = torch.cat([fade.add(part, piece.last) for part, piece in zip(kept, pieces, strict=True)], dim=-1)
    assert joined.shape == mixture.shape
    assert torch.allclose(joined, mixture, atol=1e-6)
    assert {piece.samples.shape[1] for piece in pieces[:-1]} <= {windows.size}
    assert pieces[-1].samples.shape[1] <= windows.longest_end


def test_a_recording_a_little_longer_than_a_window_is_one() -> None:
    """Ten seconds are the clips that most people have; a second window would cost a fifth more."""
    windows = in_seconds(10, 0.5, 0.5)
    (window,) = cut([noise(1, 10 * RATE)], 1, windows, RATE)
    assert (window.samples.shape[1], window.core, windows.count(10 * RATE)) == (10.5 * RATE, 10 * RATE, 1)
    assert windows.count(11 * RATE) == 2


def test_window_sizes_agree_away_from_edges():
    mixture, query = noise(1, 5 * RATE), torch.tensor([[0.0, 1.0, 0.3, 0.0]])
    whole = BandSeparator()(mixture, query)[0]
    for windows in WINDOWS:
        stem = separate(mixture, RATE, query, windows)[0, 0]
        if windows.context:
            assert (stem - whole)[3200:-3200].abs().max() <= 1e-5 * whole.abs().max()
        else:  # without context only the middles of windows can agree
            assert (stem - whole)[3200 : windows.stride - 3200].abs().max() <= 1e-5 * whole.abs().max()


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 32000, 44100, 44101, 48000, 96000, 192000])
@pytest.mark.parametrize("channels", [1, 2, 8])
@pytest.mark.parametrize("seconds", [0.05, 0.7313])
def test_stems_have_the_mixtures_rate_channels_and_length(rate, channels, seconds):
    frames = round(seconds * rate)
    mixture = tone(1, frames, rate).repeat(channels, 1)
    stem = separate(mixture, rate, torch.cat([ALL, NONE]), in_seconds(0.5, 0.05, 0.1))
    assert stem.shape == (2, channels, frames)
    assert stem[1].abs().max() == 0
    # Aligned: a tone well below the resampler's limit comes back where it was.
    edge = frames // 5
    assert (stem[0] - mixture)[:, edge:-edge].abs().max() <= 2e-3


def test_the_blocks_that_a_file_is_read_in_do_not_matter():
    mixture, query = noise(2, 60000), torch.tensor([[0.2, 1.0, 0.3, 0.0]])
    answers = [separate(mixture, 44100, query, in_seconds(0.5, 0.05, 0.1), block) for block in (60000, 4096, 777)]
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


def test_batches_do_not_matter():
    mixture, queries = noise(2, 3 * RATE), torch.eye(BANDS)[:3]
    one = separate(mixture, RATE, queries, in_seconds(0.5, 0.05, 0.1), batch=1)
    for batch in (2, 6, 100):
        assert torch.allclose(separate(mixture, RATE, queries, in_seconds(0.5, 0.05, 0.1), batch=batch), one, atol=1e-7)


def test_masks_are_computed_in_full_batches_over_windows_and_queries():
    separator = BandSeparator()
    masking = Masking(cast(Separator, separator), torch.eye(BANDS)[:2], batch=4)
    list(estimates(masking, noise(2, 4 * RATE).split(5000, dim=1), 2, in_seconds(1, 0, 0), RATE))
    assert separator.masked == [4, 4], "four windows and two queries; a mask serves both channels"
    assert separator.windows_encoded == 4, "each window is encoded once for both queries"


def test_batches_are_halved_until_they_fit_the_memory():
    class Small(BandSeparator):
        def predict(self, image: Tensor, condition: Tensor) -> Tensor:
            if len(condition) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().predict(image, condition)

    mixture, queries, windows = noise(2, 5 * RATE), torch.eye(BANDS)[:2], in_seconds(1, 0.1, 0.1)
    small, large = Small(), BandSeparator()
    halved = Masking(cast(Separator, small), queries, batch=16)
    found, expected = (
        [estimate for _, estimate, _ in estimates(masking, mixture.split(5000, dim=1), 2, windows, RATE)]
        for masking in (halved, Masking(cast(Separator, large), queries, batch=1))
    )
    assert all(torch.allclose(one, other, atol=1e-7) for one, other in zip(found, expected, strict=True))
    assert halved.batch == 3 and max(small.masked) == 3


def test_a_single_mask_that_does_not_fit_is_an_error():
    class Full(BandSeparator):
        def predict(self, image: Tensor, condition: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        separator = cast(Separator, Full())
        list(estimates(Masking(separator, ALL, batch=8), [noise(1, RATE)], 1, in_seconds(1, 0, 0), RATE))


def test_channels_in_anti_phase_are_separated_as_well_as_one():
    alone = tone(1, RATE, RATE) + tone(2, RATE, RATE)
    query = torch.tensor([[0.0, 1.0, 0.0, 0.0]])
    stem = separate(torch.stack([alone, -alone]), RATE, query, in_seconds(1, 0, 0))[0]
    expected = separate(alone[None], RATE, query, in_seconds(1, 0, 0))[0]
    assert torch.allclose(stem, torch.cat([expected, -expected]), atol=1e-6)
    assert stem[0].square().mean() > 0.9 * tone(1, RATE, RATE).square().mean()


def test_joint_estimates_and_their_residual_add_up_to_the_mixture():
    mixture = noise(2, 2 * RATE)
    queries = torch.tensor([[1.0, 0.5, 0.0, 0.0], [0.0, 0.5, 1.0, 0.0]])
    found = separate(mixture, RATE, queries, in_seconds(1, 0.1, 0.1), joint=True)
    left = mixture - found.sum(dim=0)
    unasked = torch.eye(BANDS)[3:]
    kept, whole = (separate(part, RATE, unasked, in_seconds(1, 0.1, 0.1))[0] for part in (left, mixture))
    # The band that nobody asked for is in the residual, all of it.
    assert (kept - whole).square().mean() < 1e-3 * whole.square().mean()
    assert (found[0] - found[1]).square().mean() > 0.1 * mixture.square().mean()


def test_joint_with_one_target_is_not_the_whole_mixture():
    mixture = noise(1, RATE)
    found = separate(mixture, RATE, torch.tensor([[0.0, 1.0, 0.0, 0.0]]), in_seconds(1, 0, 0), joint=True)
    assert found.square().mean() < 0.2 * mixture.square().mean()


def test_a_short_recording_does_not_cost_a_full_window():
    pieces = list(cut([noise(1, 40000)], 1, in_seconds(10, 0.5, 0.25), RATE))
    assert [piece.samples.shape for piece in pieces] == [(1, 64000)]
    pieces = list(cut([noise(1, 350000)], 1, in_seconds(10, 0.5, 0.25), RATE))
    assert [piece.samples.shape for piece in pieces] == [(1, 320000), (1, 96000)]


def test_separation_stops_between_batches_when_cancelled():
    separator, done = BandSeparator(), []
    masking = Masking(cast(Separator, separator), ALL)
    running = estimates(
        masking,
        noise(1, 10 * RATE).split(5000, dim=1),
        1,
        in_seconds(1, 0, 0),
        RATE,
        windowed=done.append,
        cancelled=lambda: len(done) == 3,
    )
    with pytest.raises(Cancelled):
        list(running)
    assert done == [1, 2, 3]
    assert len(separator.masked) == 3


@pytest.mark.parametrize(("window", "context", "overlap"), [(1, 0.5, 0), (1, 0.4, 0.15), (0.5, 0, 0.3)])
def test_windows_without_room_are_refused(window, context, overlap):
    with pytest.raises(ValueError, match="too short"):
        in_seconds(window, context, overlap)


@pytest.mark.parametrize(
    "changes",
    [{"window": 0.0}, {"window": float("inf")}, {"context": -0.1}, {"overlap": float("nan")}, {"batch": 0}],
    ids=str,
)
def test_impossible_options_are_refused(changes: dict[str, Any]):
    with pytest.raises(ValueError, match=next(iter(changes))):
        SeparationOptions(**changes)


@pytest.mark.parametrize(("format", "bit_depth"), [("mp5", None), ("mp3", 16), ("flac", 32)])
def test_options_refuse_what_no_format_can_hold(format: str, bit_depth: int | None):
    with pytest.raises(FormatUnsupported):
        SeparationOptions(format=format, bit_depth=bit_depth)


def below_10_khz(samples: Tensor) -> Tensor:
    """Return samples (..., n) without what resampling may take away."""
    spectrum = torch.fft.rfft(samples)
    spectrum[..., int(10_000 / RATE * samples.shape[-1]) :] = 0
    return torch.fft.irfft(spectrum, samples.shape[-1])


def test_the_mean_of_the_estimates_at_all_speeds_is_the_stem():
    mixture = below_10_khz(noise(2, WINDOWS[4].stride * 4 + WINDOWS[4].core))  # whole windows only
    options = {"separator": Lengths, "speeds": SPEEDS["high"]}
    for stem in (
        separate(mixture, RATE, ALL, WINDOWS[4], **options)[0],
        separate(mixture, RATE, ALL, WINDOWS[4], joint=True, exhaustive=True, **options)[0],
    ):
        error = (stem - mixture / len(SPEEDS["high"])).square().sum() / mixture.square().sum()
        assert error < 1e-4


@pytest.mark.parametrize("rate", [RATE, 44100])
def test_high_quality_changes_nothing_where_all_speeds_agree(rate: int):
    """A mask of ones or zeros gives the mixture or nothing at every speed: aligned, up to the highest frequencies."""
    mixture = noise(2, 77777)
    one, high = (
        separate(mixture, rate, torch.cat([ALL, NONE]), WINDOWS[3], speeds=speeds, batch=3)
        for speeds in SPEEDS.values()
    )
    assert (high - one).abs().max() <= 2e-3 * mixture.abs().max()
    assert not high[1].any()


@pytest.mark.parametrize("batch", [1, 7])
def test_estimates_at_other_speeds_are_in_the_mixtures_place(batch: int):
    """Tones that come and go: each mask follows them in pitch and time, each of its own window and query."""
    place = torch.arange(90000)
    tones = torch.stack([tone(band, 90000, RATE) * (place // 9000 % (band + 2) == 0) for band in range(3)]).sum(0)
    mixture = torch.stack([tones, 0.5 * tones]) + 0.01 * noise(2, 90000)
    speeds = [SPEEDS["high"][0], *SPEEDS["high"][1:] * 4]  # hardly anything of the first
    for stem in separate(mixture, RATE, torch.ones(3, BANDS), WINDOWS[3], batch=batch, separator=Loud, speeds=speeds):
        error = (stem - mixture).square().sum() / mixture.square().sum()
        assert error < 10**-1.5, f"{10 * error.log10():.1f} dB"


@given(st.fractions(Fraction(1, 2), 2, max_denominator=99), st.integers(1, 3000), st.integers(0, 2**32 - 1))
def test_a_speed_and_back_keeps_length_and_silence(speed: Fraction, frames: int, seed: int):
    own = torch.randn(2, 1, frames, generator=torch.Generator().manual_seed(seed))
    played = play(own, speed)
    assert played.shape == (2, 1, round(frames * speed.denominator / speed.numerator))
    assert mean_estimate([own, played], [Fraction(1), speed]).equal(own), "they agree"
    assert not play(torch.zeros_like(own), speed).any()
