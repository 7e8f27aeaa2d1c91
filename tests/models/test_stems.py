import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from models.errors import Cancelled, FormatUnsupported
from models.options import SeparationOptions
from models.separation.long_recordings import Source
from models.separation.presence import Gate
from models.separation.stems import Spool, SpooledStems, check_names, write
from tests.models.bands import tone

RATE = 44100


def noise(channels: int, frames: int, seed: int) -> Tensor:
    return torch.randn(channels, frames, generator=torch.Generator().manual_seed(seed)) * 0.1


def on_grid(samples: Tensor, bit_depth: int) -> Tensor:
    full = 2 ** (bit_depth - 1)
    return (samples.double() * full).round().clamp(-full, full - 1).div(full).float()


def read(path, bit_depth: int) -> np.ndarray:
    """Integers of a file, (channels, n)."""
    wide, _ = soundfile.read(path, dtype="int32", always_2d=True)
    return wide.T.astype(np.int64) >> (32 - bit_depth)


def write_stems(
    mixture: Tensor, stems: Tensor, folder, options: SeparationOptions, gates=None, cancelled=lambda: False
):
    source = Source(RATE, mixture.shape[0], mixture.shape[1], lambda: mixture.split(7000, dim=1))
    names = [f"stem {number}" for number in range(len(stems))]
    with Spool(folder, len(stems), mixture.shape[0]) as spool:
        for block in stems.split(3333, dim=-1):
            for number, stem in enumerate(block):
                spool.append(number, stem)
        separated = SpooledStems(source, spool, gates or [None] * len(stems), cancelled)
        return write(separated, names, folder, options, lambda frames: None)


@pytest.mark.parametrize("bit_depth", [16, 24])
@pytest.mark.parametrize("format", ["flac", "wav"])
@pytest.mark.parametrize("loud", [False, True], ids=["fits", "clips"])
def test_files_add_up_exactly(bit_depth, format, loud, tmp_path):
    mixture = on_grid(noise(2, 20000, 0) + 0.5 * tone(0, 20000, RATE), 16)
    stems = torch.stack([noise(2, 20000, seed) for seed in (1, 2, 3)])
    if loud:
        stems[0] += 3 * tone(1, 20000, RATE)
        stems[1] -= 4 * tone(1, 20000, RATE)
    files, gain = write_stems(mixture, stems, tmp_path, SeparationOptions(format=format, bit_depth=bit_depth))
    assert (gain < 1) == loud
    assert [file.name for file in files] == ["stem 0", "stem 1", "stem 2", "residual"]
    total = sum(read(file.path, bit_depth) for file in files)
    full = 2 ** (bit_depth - 1)
    exact = mixture.double().numpy() * gain * full
    assert np.abs(total - exact).max() <= 0.5 + 1e-6, "off by no more than writing the mixture itself would be"
    if not loud:
        assert np.array_equal(total, np.rint(exact))
    for file in files:
        assert abs(read(file.path, bit_depth)).max() < full, "nothing clips"
        assert file.peak == pytest.approx(abs(read(file.path, bit_depth)).max() / full)
        assert file.loudness is not None


def test_float_files_add_up_within_rounding_and_are_never_turned_down(tmp_path):
    mixture = 3 * noise(2, 20000, 0)
    stems = torch.stack([noise(2, 20000, 1), 4 * noise(2, 20000, 2)])
    files, gain = write_stems(mixture, stems, tmp_path, SeparationOptions(format="wav", bit_depth=32))
    assert gain == 1
    parts = [soundfile.read(file.path, dtype="float32", always_2d=True)[0].T for file in files]
    assert np.abs(sum(part.astype(np.float64) for part in parts) - mixture.numpy()).max() < 1e-6
    assert np.array_equal(parts[0], stems[0].numpy())
    assert files[1].peak > 1


def test_a_mixture_at_full_scale_is_not_turned_down(tmp_path):
    mixture = torch.cat([torch.full((1, 500), -1.0), torch.full((1, 500), 32767 / 32768)], dim=1)
    stems = torch.stack([mixture, torch.zeros(1, 1000)])
    files, gain = write_stems(mixture, stems, tmp_path, SeparationOptions(format="flac", bit_depth=16))
    assert gain == 1
    assert np.array_equal(read(files[0].path, 16)[0, [0, -1]], [-32768, 32767])
    assert not read(files[2].path, 16).any()


def test_lossy_files_share_a_gain_too(tmp_path):
    stems = torch.stack([8 * tone(0, RATE, RATE)[None], 0.1 * tone(1, RATE, RATE)[None]])
    files, gain = write_stems(stems.sum(dim=0), stems, tmp_path, SeparationOptions(format="mp3", residual=False))
    assert gain == pytest.approx(1 / 2.4, rel=0.01)
    assert [file.path.name for file in files] == ["stem 0.mp3", "stem 1.mp3"]
    assert files[0].content_type == "audio/mpeg"


def test_a_closed_gate_turns_a_stem_down_but_not_to_nothing_and_the_residual_takes_the_rest(tmp_path):
    mixture = tone(0, RATE, RATE)[None]
    gates = [Gate(torch.ones(2), -30.0)]
    files, _ = write_stems(mixture, mixture[None], tmp_path, SeparationOptions(format="wav", bit_depth=32), gates)
    stem, residual = (soundfile.read(file.path, dtype="float32", always_2d=True)[0].T for file in files)
    assert np.abs(stem).max() == pytest.approx(0.3 * 10 ** (-30 / 20), rel=1e-3)
    assert np.abs(stem + residual - mixture.numpy()).max() < 1e-6


def test_silence_has_no_loudness_and_no_peak(tmp_path):
    files, gain = write_stems(torch.zeros(1, RATE), torch.zeros(1, 1, RATE), tmp_path, SeparationOptions())
    assert [(file.peak, file.loudness) for file in files] == [(0.0, None)] * 2
    assert gain == 1


def test_without_targets_the_residual_is_the_mixture(tmp_path):
    mixture = on_grid(noise(2, 20000, 0), 24)
    files, _ = write_stems(mixture, torch.zeros(0, 2, 20000), tmp_path, SeparationOptions(format="flac", bit_depth=24))
    assert [file.name for file in files] == ["residual"]
    assert np.array_equal(read(files[0].path, 24), np.rint(mixture.double().numpy() * 2**23))


def test_cancelled_in_the_middle_leaves_no_files(tmp_path):
    answers = iter([False] * 4 + [True])
    with pytest.raises(Cancelled):
        write_stems(
            noise(1, 20000, 0), noise(1, 20000, 1)[None], tmp_path, SeparationOptions(), cancelled=lambda: next(answers)
        )
    assert list(tmp_path.iterdir()) == []


def test_a_format_that_cannot_hold_the_stems_leaves_no_files(tmp_path):
    with pytest.raises(FormatUnsupported):
        write_stems(noise(3, 1000, 0), noise(3, 1000, 1)[None], tmp_path, SeparationOptions(format="mp3"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", ["wav", "flac"])
def test_a_stem_takes_its_place_on_the_disk_once(format, tmp_path):
    """The spool is deleted while files are written, in parts of `file_bytes`."""
    mixture, stems, part = noise(2, 200_000, 0), torch.stack([noise(2, 200_000, seed) for seed in (1, 2, 3)]), 1 << 15
    source = Source(RATE, 2, 200_000, lambda: mixture.split(7000, dim=1))
    used: list[int] = []
    with Spool(tmp_path, 3, 2, file_bytes=part) as spool:
        for block in stems.split(3333, dim=-1):
            for number, stem in enumerate(block):
                spool.append(number, stem)
        files, _ = write(
            SpooledStems(source, spool, [None] * 3),
            list("abc"),
            tmp_path,
            SeparationOptions(format=format),
            lambda frames: used.append(sum(path.stat().st_size for path in tmp_path.iterdir())),
        )
        left = [path.name for path in tmp_path.iterdir() if path.suffix == ".f32"]
        assert sorted(name[0] for name in left) == ["0", "1", "2"], "only the last part of each is left"
    floats = stems[0].nbytes
    written = sum(file.path.stat().st_size for file in files)
    # A part may be larger by the last block that was appended, and a written block is not read yet.
    assert max(used) <= max(3 * floats, written) + 3 * (part + 3333 * 8) + 4 * 7000 * 8
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(file.path.name for file in files)


@pytest.mark.parametrize("names", [["residual"], ["Residual"], ["a", "A"], [""], ["../a"], [".."], ["a/b"], ["a" * 65]])
def test_names_that_could_not_be_files_are_refused(names):
    with pytest.raises(ValueError, match=r"name|reserved"):
        check_names(names)


def test_a_mixture_that_grew_is_noticed(tmp_path):
    with Spool(tmp_path, 1, 1) as spool, pytest.raises(ValueError, match="longer"):
        spool.read(1)
