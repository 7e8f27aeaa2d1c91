"""Files as phones, recorders, editors and damage make them, each against FFmpeg's own decode."""

import os
import struct
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from av.codec import Codec

from models.media import (
    AudioTooLong,
    AudioUndecodable,
    Limits,
    MediaInfo,
    decode,
    decode_in_child,
    open_audio,
    open_writer,
)
from models.media.demuxing import MediaFile
from models.media.input_formats import CODECS, CONTENT_TYPES
from tests import media_files
from tests.ffmpeg_files import RATE, Folder, extensible_wav, truth
from tests.field_truth import CONTAINERS, UNTAGGED
from tests.media_files import Samples, lag, noise


def read(path: Path, limits: Limits | None = None, track: int | None = None) -> tuple[Samples, MediaInfo]:
    with open_audio(path, limits, track) as reader:
        sound = np.concatenate(list(reader), axis=1)
    return sound, reader.info


@pytest.mark.parametrize("name", CONTAINERS)
def test_files_are_decoded_as_ffmpeg_decodes_them(field: Folder, name: str) -> None:
    sound, info = read(field.make(name))
    expected = truth(field.make(name), len(sound))
    # FFmpeg leaves the padding that only mp4's edit list tells.
    padding = 1200 if info.container == "mov" else 0
    assert 0 <= expected.shape[1] - sound.shape[1] <= padding
    # FFmpeg's versions differ in how exactly they multiply steps of IMA.
    np.testing.assert_allclose(sound, expected[:, : sound.shape[1]], atol=2e-3 if name == "ima.wav" else 1e-4)
    assert np.abs(sound).max() > 0.01
    assert info.warnings == ()


def test_what_has_no_file_here_is_not_accepted(field: Folder) -> None:
    found = [probe_track(field.make(name)) for name in (*CONTAINERS, "link0.opus", "a.dsf", "msb.dsf")]
    assert {container for container, _ in found} == set(CONTENT_TYPES)
    assert {codec for _, codec in found} == {Codec(name, "r").canonical_name for name in CODECS}


def probe_track(path: Path) -> tuple[str, str]:
    with MediaFile(path) as media:
        return media.container, media.codec


@pytest.mark.parametrize(("name", "untagged"), UNTAGGED.items())
def test_what_follows_a_tag_is_decoded(field: Folder, name: str, untagged: str) -> None:
    np.testing.assert_array_equal(read(field.make(name))[0], read(field.make(untagged))[0])


@pytest.mark.parametrize("name", ["rifx.wav", "24-in-32.wav"])
def test_unusual_wavs_are_decoded_as_libsndfile_decodes_them(field: Folder, name: str) -> None:
    expected, _ = soundfile.read(field.make(name), dtype="float32")
    sound, info = read(field.make(name))
    np.testing.assert_array_equal(sound, expected.T)
    assert np.abs(sound - noise(9000)).max() < 1e-4
    assert info.warnings == ()


@pytest.mark.parametrize("name", ["a.dsf", "msb.dsf"])
def test_dsd_is_converted_to_a_rate_within_the_limits(field: Folder, name: str) -> None:
    sound, info = read(field.make(name))
    expected = truth(field.make(name), 2, options="-ar 176400")
    assert (info.rate, sound.shape) == (176400, expected.shape)
    # FFmpeg's versions differ in how they begin to resample.
    np.testing.assert_allclose(sound[:, 20:], expected[:, 20:], atol=1e-4)
    assert lag(np.repeat(noise(9000)[0], 4), sound[0]) in range(-8, 9)


@pytest.mark.parametrize("layout", ["quad", "5.1", "5.1(side)", "7.1"])
@pytest.mark.parametrize(("format", "depth"), [("wav", 16), ("wav", 32), ("flac", 24)])
def test_speakers_are_kept(field: Folder, tmp_path: Path, layout: str, format: str, depth: int) -> None:
    source = field.make(f"{layout}.wav")
    decoded = decode(source, tmp_path / "decoded.wav")
    with (
        open_audio(tmp_path / "decoded.wav") as reader,
        open_writer(tmp_path / "stem", format, RATE, reader.channels, depth, reader.info.mask) as writer,
    ):
        for block in reader:
            writer.write(block)
    assert decoded.mask == reader.info.mask != 0
    assert layout_of(tmp_path / "stem") == layout_of(tmp_path / "decoded.wav") == layout_of(source) == layout
    np.testing.assert_array_equal(read(tmp_path / "stem")[0], read(source)[0])


def layout_of(path: Path) -> str:
    command = ["ffprobe", "-v", "error", "-show_entries", "stream=channel_layout", "-of", "csv=p=0", path]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


# Chains and changes


def test_all_links_of_a_vorbis_chain_are_decoded(field: Folder) -> None:
    sound, info = read(field.make("chain.ogg"))
    links = [read(field.make(f"link{number}.ogg"))[0] for number in range(3)]
    assert [link.shape[1] for link in links] == [RATE, RATE // 2, RATE * 3 // 10]
    np.testing.assert_array_equal(sound, np.concatenate(links, axis=1))
    assert info.warnings == ()


def test_links_of_another_rate_are_converted(field: Folder) -> None:
    sound, info = read(field.make("changing.ogg"))
    assert sound.shape == (2, RATE * 3 // 2)
    assert lag(noise(RATE, 1)[0], sound[0, RATE:]) == 0
    assert "From 1.0 s on" in info.warnings[0]


def test_all_links_of_an_opus_chain_are_decoded(field: Folder) -> None:
    sound, info = read(field.make("chain.opus"))
    links = [read(field.make(f"link{number}.opus"))[0] for number in range(2)]
    np.testing.assert_allclose(sound, np.concatenate(links, axis=1), atol=1e-4)
    assert info.warnings == ()


@pytest.mark.parametrize("name", ["to-mono.mp3", "to-mono.aac", "to-slow.aac"])
def test_a_stream_that_changes_goes_on_as_it_began(field: Folder, name: str) -> None:
    sound, info = read(field.make(name))
    expected = truth(field.make(name), 2)
    assert (info.rate, sound.shape) == (RATE, expected.shape)
    np.testing.assert_allclose(sound, expected, atol=1e-4)
    assert len(info.warnings) == 1
    assert "from 1.0 s on" in info.warnings[0]


def test_an_mp3_of_another_rate_goes_on_at_the_first(field: Folder) -> None:
    """FFmpeg's program takes the rate of what it has read last."""
    sound, info = read(field.make("to-slow.mp3"))
    parts = [lag(noise(RATE)[0], sound[0, start:]) for start in (0, RATE, 2 * RATE)]
    assert info.rate == RATE
    assert parts[0] == 0
    assert 3.0 < info.duration < 3.15 if info.duration else False
    assert "44100 Hz" in info.warnings[0]


# Headers


def test_the_data_chunk_is_found_by_the_chunks_before_it(tmp_path: Path) -> None:
    """A text chunk with the word, and a size after it, is not the data chunk."""
    whole = media_files.wav_bytes(bytes(4000), 1, 8000, 16)
    text = b"LIST" + struct.pack("<I", 24) + b"INFOICMT" + struct.pack("<I", 12) + b"data" + struct.pack("<I", 9000) * 2
    (tmp_path / "a.wav").write_bytes(whole[:12] + text + whole[12:])
    assert read(tmp_path / "a.wav")[1].warnings == ()
    (tmp_path / "b.wav").write_bytes((whole[:12] + text + whole[12:])[:-2000])
    assert "0.1 s are missing" in read(tmp_path / "b.wav")[1].warnings[0]


def test_a_mask_of_another_number_of_speakers_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(extensible_wav(noise(9000, 4), 24, 24, 0x3F))
    assert read(tmp_path / "a.wav")[1].mask == 0
    with pytest.raises(ValueError, match="names 6 speakers, and there are 4"):
        open_writer(tmp_path / "b.wav", "wav", RATE, 4, mask=0x3F)


# Damage


@pytest.mark.parametrize("name", ["cut.mp3", "cut.flac", "cut.m4a", "cut.wav", "cut.webm"])
def test_warnings_tell_how_much_was_cut(field: Folder, name: str) -> None:
    sound, info = read(field.make(name))
    expected = truth(field.make(name), 2)
    np.testing.assert_allclose(sound, expected, atol=1e-4)
    seconds = sound.shape[1] / RATE
    assert 5 < seconds < 6
    assert f"ends after {seconds:.1f} s, and by its header it lasts 8.0 s: {8 - seconds:.1f} s are" in info.warnings[-1]


@pytest.mark.parametrize("name", ["damaged.webm", "damaged.mp4"])
def test_damage_is_silent_where_there_is_a_clock(field: Folder, name: str) -> None:
    sound, info = read(field.make(name))
    whole, _ = read(field.make(f"long.{name.split('.')[1]}"))
    assert abs(sound.shape[1] - whole.shape[1]) < 0.001 * RATE
    assert lag(whole[0, 6 * RATE :], sound[0, 6 * RATE :]) in range(-48, 49)
    assert "no sound from" in info.warnings[0]


def test_damage_shifts_times_where_there_is_no_clock(field: Folder) -> None:
    _, info = read(field.make("damaged.mp3"))
    assert "could not be decoded, at 4.0 s. What follows is early" in info.warnings[0]
    assert "are missing" in info.warnings[1]


def test_undamaged_files_have_no_warnings(field: Folder) -> None:
    for name in ("long.webm", "long.mkv", "long.mp4", "long.mp3", "long.flac", "wrong-total.flac"):
        assert read(field.make(name))[1].warnings == ()


@pytest.mark.parametrize("name", ["stereo.mp3", "stereo.m4a", "link0.opus", "link0.ogg", "stereo.flac", "stereo.wav"])
def test_recordings_exactly_as_long_as_the_limit_pass(field: Folder, name: str) -> None:
    """Headers count the padding, which decoding leaves out."""
    assert read(field.make(name), Limits(seconds=1))[1].frames == RATE
    with pytest.raises(AudioTooLong):
        read(field.make(name), Limits(seconds=1 - 1 / RATE))


@pytest.mark.parametrize("value", [1e18, -3e30])
def test_samples_far_beyond_full_scale_are_refused(tmp_path: Path, value: float) -> None:
    samples = np.zeros(9000, np.float32)
    samples[5000] = value
    (tmp_path / "a.wav").write_bytes(media_files.wav_bytes(samples.tobytes(), 1, 8000, 32, tag=3))
    with pytest.raises(AudioUndecodable, match="times full scale"):
        read(tmp_path / "a.wav")


# Tracks


@pytest.mark.parametrize(("name", "codec"), [("dts-ac3.mkv", "ac3"), ("truehd-aac.mkv", "aac")])
def test_the_first_track_that_can_be_read_is_read(field: Folder, name: str, codec: str) -> None:
    sound, info = read(field.make(name))
    assert info.codec == codec
    np.testing.assert_allclose(sound, truth(field.make(name), 2, options="-map 0:a:1"), atol=1e-4)
    with pytest.raises(AudioUndecodable, match=r"Track 1 cannot be read\. The codec"):
        read(field.make(name), track=1)


def test_a_track_is_chosen_by_its_number(field: Folder) -> None:
    path = field.make("obs.mkv")
    for number, channels in ((None, 1), (1, 1), (2, 2), (4, 1)):
        sound, _ = read(path, track=number)
        options = f"-map 0:a:{(number or 1) - 1}"
        np.testing.assert_allclose(sound, truth(path, channels, options=options), atol=1e-4)
    with pytest.raises(AudioUndecodable, match="no track 5: the file has 4"):
        read(path, track=5)


# What is refused


REFUSED = {
    "midi": "MIDI file: it has notes, not sound",
    "pdf": "PDF",
    "html": "web page",
    "zip": "archive",
    "tagged-zip": "archive",
    "picture": "picture",
    "playlist": "playlist",
    "silent-video.mkv": "video without sound",
    "encrypted.mp4": "encrypted",
    "drm.m4p": "encrypted",
    "no-moov.m4a": "cut off",
    "dts.mkv": "codec dts is not accepted",
    **{f"own-order.{end}": r"channels are in an order that is not accepted" for end in ("caf", "mov", "aiff")},
    "text": "not a media file",
}


@pytest.mark.parametrize(("name", "words"), REFUSED.items())
def test_what_is_refused_is_named(field: Folder, name: str, words: str) -> None:
    with pytest.raises(AudioUndecodable, match=words) as raised:
        read(field.make(name))
    if name not in ("encrypted.mp4", "drm.m4p", "no-moov.m4a") and "own-order" not in name:
        assert "Accepted are WAV" in raised.value.detail


@pytest.mark.parametrize("silence", [0.0, 1.0])
@pytest.mark.parametrize("is_swapped", [False, True])
def test_dts_in_a_wav_of_16_bits_is_no_noise(field: Folder, tmp_path: Path, silence: float, is_swapped: bool) -> None:
    """As CDs of DTS are copied: FFmpeg finds it behind a header that tells PCM."""
    with av.open(str(field.make("dts.mkv"))) as film:
        frames = b"".join(bytes(packet) for packet in film.demux(audio=0))
    words = np.frombuffer(frames[: len(frames) // 2 * 2], ">u2" if is_swapped else "<u2").astype("<u2")
    samples = bytes(round(silence * RATE) * 4) + words.tobytes()
    (tmp_path / "a.wav").write_bytes(media_files.wav_bytes(samples, 2, RATE, 16))
    with pytest.raises(AudioUndecodable, match="codec dts is not accepted"):
        read(tmp_path / "a.wav")


@pytest.mark.parametrize("before", [b"", bytes(4 * RATE), b"ID3\x04\0\0\0\0\0\x16" + bytes(22)])
def test_an_mp3_in_a_wav_of_16_bits_is_no_noise(tmp_path: Path, before: bytes) -> None:
    media_files.write_packets(tmp_path / "a.mp3", noise(8 * RATE), RATE, "mp3", "libmp3lame")
    with av.open(str(tmp_path / "a.mp3")) as mp3:
        frames = b"".join(bytes(packet) for packet in mp3.demux(audio=0))
    (tmp_path / "a.wav").write_bytes(media_files.wav_bytes(before + frames, 2, RATE, 16))
    with MediaFile(tmp_path / "a.wav") as media:
        assert (media.container, media.codec) == ("wav", "mp3")


# The child process


def test_a_file_in_a_child_is_decoded_or_a_typed_error(field: Folder, tmp_path: Path) -> None:
    info = decode_in_child(field.make("surround.opus"), tmp_path / "out.wav", Limits())
    assert (info.channels, info.frames) == (8, RATE)
    with pytest.raises(AudioUndecodable):
        decode_in_child(field.make("crash.aiff"), tmp_path / "none.wav", Limits())
    assert not (tmp_path / "none.wav").exists()
    with pytest.raises(AudioTooLong):
        decode_in_child(field.make("surround.opus"), tmp_path / "none.wav", Limits(seconds=0.5))
    with pytest.raises(OSError, match="No such file"):
        decode_in_child(tmp_path / "nothing", tmp_path / "none.wav", Limits())


def test_a_name_in_another_alphabet_is_no_obstacle(field: Folder, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"Bj\xf6rk [live] (1).wav")
    path.write_bytes(field.read("stereo.wav"))
    assert read(path)[0].shape == (2, RATE)
    assert decode_in_child(path, tmp_path / "out.wav", Limits()).frames == RATE
