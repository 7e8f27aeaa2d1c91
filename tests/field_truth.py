"""What files of `tests.ffmpeg_files` sound like by FFmpeg's own decode, for decoder, commands and jobs alike."""

from pathlib import Path

import numpy as np
import soundfile

from tests.ffmpeg_files import SYNC, Folder, truth
from tests.media_files import Samples

CONTAINERS = (
    *("alac.caf", "pcm.caf", "wma1.wma", "wma2.wma", "aac.ts", "mp2.ts", "mp2.mpg", "ac3.vob", "mp3.avi", "pcm.avi"),
    *("aac.avi", "flac.avi", "aac.asf"),
    *("aac.flv", "mp3.flv", "pcm.au", "mulaw.au", "a.ac3", "a.eac3", "a.wv", "float.wv", "a.tta", "a.mp1", "a.mp2"),
    *("mp2.mkv", "a.aifc", "wide.amr", "narrow.amr", "narrow.3gp", "20-in-24.wav"),
    # Channels
    *("surround.m4a", "surround.opus", "surround-vorbis.mka"),
    *("3.0.ogg", "5.0.ogg", "5.1.ogg", "6.1.ogg", "7.1.ogg"),
    # Codecs that are left
    *("a.w64", "ima.mov", "ima.wav", "ms.wav", "gsm.wav", "alaw.wav", "u8.wav", "s32le.wav", "f32le.wav", "f64le.wav"),
    *("s8.caf", "s32be.aiff", "f32be.aiff", "f64be.aiff", "stereo.aac", "stereo.mp3"),
    # Tags before what FFmpeg expects them before
    *("tag.flac", "tag.mp3", "tag.aac"),
)
# Of files with tags before what FFmpeg does not expect them before, the same without.
UNTAGGED = {
    **{f"tag.{end}": f"stereo.{end}" for end in ("wav", "w64", "aiff", "m4a", "mka")},
    **{"tag.ac3": "a.ac3", "tag.bw64": "rf64.wav", "tag.wma": "wma2.wma", "tag.flv": "aac.flv", "tag.mpg": "mp2.mpg"},
    "tag.ts": "aac.ts",
}
# Silence stands in gaps and before sound that begins after the picture.
ON_THEIR_CLOCK = (
    *("gap.mkv", "gap.mp4", "gap.ogg", "late.mkv", "late.mp4", "late.wmv", "late.ogv", "damaged.mp4"),
    *("gap.webm", "damaged.webm"),
)
PRE_SKIP = 336  # samples of Opus in WebM, which FFmpeg takes for a gap at the beginning
SECOND_TRACK = ("dts-ac3.mkv", "truehd-aac.mkv")  # which is the first that can be read
FAULTS = (
    *("chain.ogg", "chain.opus", "to-mono.mp3", "to-mono.aac", "to-slow.aac", "wrong-total.flac", *UNTAGGED),
    *("rifx.wav", "24-in-32.wav", *ON_THEIR_CLOCK, *SECOND_TRACK, "obs.mkv", "live.mka", "far.webm", "far.opus"),
    *("damaged.mp3", "cut.mp3", "cut.flac", "cut.m4a", "cut.wav", "cut.webm"),
)
PADDING = 1200  # samples that FFmpeg leaves at the end, and that only mp4's edit list tells
TOLERANCE = 2e-3  # FFmpeg's versions differ in how exactly they multiply steps of IMA; else 1e-7


def expected(field: Folder, name: str, channels: int) -> Samples:
    """Return the samples (channels, n) of a file of CONTAINERS or FAULTS."""
    path = field.make(UNTAGGED.get(name, name))
    if name == "chain.ogg":
        # Of each link, FFmpeg adds or loses up to a packet.
        return np.concatenate([_by_libsndfile(field.make(f"link{number}.ogg")) for number in range(3)], axis=1)
    if name in ("rifx.wav", "24-in-32.wav"):
        return _by_libsndfile(path)
    options = "-map 0:a:1" if name in SECOND_TRACK else ""
    sound = truth(path, channels, SYNC if name in ON_THEIR_CLOCK else None, options)
    return sound[:, PRE_SKIP:] if name in ("gap.webm", "damaged.webm") else sound


def _by_libsndfile(path: Path) -> Samples:
    sound, _ = soundfile.read(path, dtype="float32", always_2d=True)
    return np.asarray(sound.T, np.float32)


def assert_heard(field: Folder, name: str, sound: Samples, rate: int) -> None:
    """Assert that samples (channels, n) are those of a file, with its channels in order, its length and its clock."""
    wanted = expected(field, name, len(sound))
    padding = PADDING if name.endswith((".m4a", ".mp4", ".mov", ".3gp")) else 0
    assert 0 <= wanted.shape[1] - sound.shape[1] <= padding, (name, wanted.shape, sound.shape, rate)
    np.testing.assert_allclose(sound, wanted[:, : sound.shape[1]], atol=TOLERANCE, err_msg=name)
    assert np.abs(sound).max() > 0.01, name
