"""Writer of mp3, opus and m4a, by FFmpeg."""

from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, cast

import av
import numpy as np
from av.audio.codeccontext import AudioCodecContext
from av.audio.format import AudioFormat
from av.audio.frame import AudioFrame
from av.audio.layout import AudioLayout
from av.audio.stream import AudioStream

from models.encoding.writer import Block, ResamplingWriter, delete_on_failure


class _Packets(NamedTuple):
    """FFmpeg's parameters for a format: muxer and its options, codec, sample format."""

    muxer: str
    options: dict[str, str]
    codec: str
    samples: str


_PACKETS = {
    "mp3": _Packets("mp3", {}, "libmp3lame", "fltp"),
    "opus": _Packets("ogg", {}, "libopus", "flt"),
    "m4a": _Packets("ipod", {"movflags": "+faststart"}, "aac", "fltp"),
}


class PacketWriter(ResamplingWriter):
    """mp3, opus and m4a, by FFmpeg. All three containers store encoder delay and padding."""

    def __init__(self, path: Path, format: str, rate: int, channels: int, file_rate: int) -> None:
        super().__init__(path, rate, channels, file_rate)
        packets = _PACKETS[format]
        options = dict(packets.options)
        if format == "m4a":
            # The edit list's unit is the movie's timescale: with the default, milliseconds, up to 22 samples are lost.
            options["movie_timescale"] = str(file_rate)
        self._layout = "mono" if channels == 1 else "stereo"
        self._samples = packets.samples
        with delete_on_failure(path) as opened:
            self._container = av.open(f"file:{path.absolute()}", "w", format=packets.muxer, container_options=options)
            opened.callback(self._container.close)
            self._stream = cast(AudioStream, self._container.add_stream(packets.codec, rate=file_rate))
            codec = cast(AudioCodecContext, self._stream.codec_context)
            codec.layout, codec.format = AudioLayout(self._layout), AudioFormat(packets.samples)
            # 96 kbit/s a channel, less at low rates, which need less (and MPEG 2.5 allows no more).
            codec.bit_rate = channels * min(96_000, 4 * file_rate)
            codec.open()
        self._frame = codec.frame_size or 1024
        self._pending = np.zeros((channels, 0), np.float32)
        self._sent = 0
        self._closed = False

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            self._drain()
            if self._pending.shape[1] or not self._sent:
                self._send(self._pending)
            self._mux(None)
        finally:
            self._container.close()

    def _encode(self, block: Block) -> None:
        self._pending = np.concatenate([self._pending, block], axis=1)
        whole = self._pending.shape[1] - self._pending.shape[1] % self._frame
        for start in range(0, whole, self._frame):
            self._send(self._pending[:, start : start + self._frame])
        self._pending = self._pending[:, whole:]

    def _send(self, block: Block) -> None:
        if not block.shape[1]:
            return
        planes = block if self._samples == "fltp" else block.T.reshape(1, -1)
        frame = AudioFrame.from_ndarray(np.ascontiguousarray(planes), format=self._samples, layout=self._layout)
        frame.sample_rate = self.file_rate
        frame.pts, frame.time_base = self._sent, Fraction(1, self.file_rate)
        self._sent += block.shape[1]
        self._mux(frame)

    def _mux(self, frame: AudioFrame | None) -> None:
        try:
            self._container.mux(self._stream.encode(frame))
        except BaseException:
            # FFmpeg's MP4 muxer crashes if it is given more after a header that it could not write.
            self._closed = True
            self._container.close()
            raise
