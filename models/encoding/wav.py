"""Writer of WAV files, RF64 beyond 4 GiB."""

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from models.encoding.writer import AudioWriter, Block, delete_on_failure, integers

# RIFF counts bytes in 32 bits.
_RIFF_BYTES = 2**32 - 1
# WAVE_FORMAT_EXTENSIBLE, and what follows the format's tag in its GUIDs.
_EXTENSIBLE = 0xFFFE
_SUBFORMAT = bytes.fromhex("000000001000800000aa00389b71")


class WavWriter(AudioWriter):
    """RIFF WAVE of 16- or 24-bit integers or 32-bit floats; RF64 (EBU Tech 3306) once it outgrows `riff_bytes`."""

    def __init__(
        self, path: Path, rate: int, channels: int, bit_depth: int, mask: int = 0, riff_bytes: int = _RIFF_BYTES
    ) -> None:
        super().__init__(path, rate, channels)
        self.bit_depth = bit_depth
        self._mask = mask if channels > 2 else 0
        self._riff_bytes = riff_bytes
        self._bytes = 0
        with delete_on_failure(path) as opened:
            self._file: BinaryIO = path.open("wb")
            opened.callback(self._file.close)
            self._file.write(self._header())

    def quantise(self, block: NDArray[np.floating]) -> Block:
        return block.astype(np.float32, copy=False) if self.bit_depth == 32 else super().quantise(block)

    def close(self) -> None:
        if self._file.closed:
            return
        try:
            if self._bytes % 2:
                self._file.write(b"\0")
            self._file.seek(0)
            self._file.write(self._header())
        finally:
            self._file.close()

    def _append(self, block: Block) -> None:
        if self.bit_depth == 32:
            samples = np.ascontiguousarray(block.T, dtype="<f4").tobytes()
        elif self.bit_depth == 16:
            samples = integers(block, 16).T.astype("<i2").tobytes()
        else:
            wide = np.ascontiguousarray(integers(block, 24).T.astype("<i4"))
            samples = wide.view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
        self._file.write(samples)
        self._bytes += len(samples)

    def _header(self) -> bytes:
        depth = self.bit_depth or 32
        frame = self.channels * depth // 8
        tag = 3 if depth == 32 else 1
        layout = struct.pack("<HIIHH", self.channels, self.rate, self.rate * frame, frame, depth)
        if self._mask:
            guid = struct.pack("<H", tag) + _SUBFORMAT
            layout = struct.pack("<H", _EXTENSIBLE) + layout + struct.pack("<HHI", 22, depth, self._mask) + guid
        else:
            layout = struct.pack("<H", tag) + layout
        chunks = b"fmt " + struct.pack("<I", len(layout)) + layout
        # "WAVE", the 36 bytes kept for ds64, these chunks, the fact chunk and the data chunk's own header.
        whole = 4 + 36 + len(chunks) + 12 + 8 + self._bytes + self._bytes % 2
        if whole <= self._riff_bytes:
            start = b"RIFF" + struct.pack("<I", whole) + b"WAVE" + b"JUNK" + struct.pack("<I", 28) + bytes(28)
            counts = (self.frames, self._bytes)
        else:
            sizes = struct.pack("<QQQI", whole, self._bytes, self.frames, 0)
            start = b"RF64" + struct.pack("<I", 0xFFFFFFFF) + b"WAVE" + b"ds64" + struct.pack("<I", 28) + sizes
            counts = (0xFFFFFFFF, 0xFFFFFFFF)
        return start + chunks + b"fact" + struct.pack("<II", 4, counts[0]) + b"data" + struct.pack("<I", counts[1])
