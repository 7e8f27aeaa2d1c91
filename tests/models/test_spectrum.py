import pytest
import torch

from models.spectrum import istft, mel_bands, stft


@pytest.mark.parametrize("samples", [1, 160, 513, 1025, 2047, 31_999, 32_000])
@pytest.mark.parametrize(("fft_size", "hop", "window_size"), [(2048, 320, None), (1024, 320, None), (1024, 320, 800)])
def test_the_inverse_returns_every_sample(samples, fft_size, hop, window_size):
    waveforms = torch.randn(2, samples, generator=torch.Generator().manual_seed(samples))
    spectrum = stft(waveforms, fft_size, hop, window_size)
    assert spectrum.shape == (2, samples // hop + 1, fft_size // 2 + 1)
    returned = istft(spectrum, fft_size, hop, samples, window_size)
    torch.testing.assert_close(returned, waveforms, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("fft_size", "hop", "window_size"), [(1024, 320, None), (1024, 320, 800)])
def test_samples_that_no_frame_covers_are_refused(fft_size, hop, window_size):
    """The last frame's window ends half a window after its centre; `torch.istft` warns and pads with zeros there."""
    waveforms = torch.randn(1, 3200, generator=torch.Generator().manual_seed(0))
    spectrum = stft(waveforms, fft_size, hop, window_size)
    covered = 3200 + (window_size or fft_size) // 2
    longest = istft(spectrum, fft_size, hop, covered, window_size)
    assert longest.shape == (1, covered) and longest.isfinite().all()
    for samples in (covered + 1, covered + 10 * hop):
        with pytest.raises(ValueError, match=f"11 frames cover {covered} samples, not {samples}"):
            istft(spectrum, fft_size, hop, samples, window_size)


def test_a_frame_is_centred_on_its_hop():
    click = torch.zeros(1, 3200)
    click[0, 1600] = 1
    energy = stft(click, 1024, 320).abs().square().sum(-1)[0]
    assert energy.argmax() == 1600 // 320


def test_mel_bands_follow_slaney():
    bands = mel_bands(1024, 32_000, 64, 50, 14_000)
    assert bands.shape == (513, 64)
    hertz = torch.linspace(0, 16_000, 513)
    assert bands[(hertz < 50) | (hertz > 14_000)].abs().max() == 0
    # Slaney's scale is linear below 1 kHz: the lowest peaks are equally far apart.
    peaks = (bands[:, 4:12] * hertz[:, None]).sum(0) / bands[:, 4:12].sum(0)
    steps = peaks.diff()
    assert steps.std() / steps.mean() < 0.05
    # Slaney's norm: every triangle has the same area, in Hz.
    assert bands[:, 30:].sum(0).mul(32_000 / 1024).sub(1).abs().max() < 0.02
