"""Local copies of uploads."""

import asyncio
import hashlib
from collections.abc import AsyncIterator

import numpy as np
import pytest

from app.errors import UploadTooLarge
from app.local_copies import LocalCopy

CONTENT = np.random.default_rng(3).bytes(3 << 18)


async def pieces(size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(CONTENT), size):
        yield CONTENT[start : start + size]


@pytest.mark.parametrize("size", [1000, 1 << 16, 1 << 18, len(CONTENT)])
def test_a_copy_has_all_bytes_whatever_the_pieces_in_which_they_arrive(size: int) -> None:
    async def run() -> None:
        with LocalCopy() as copy:
            stored = await copy.write(pieces(size), len(CONTENT))
            assert copy.path.read_bytes() == CONTENT
            assert (stored.bytes, stored.sha256) == (len(CONTENT), hashlib.sha256(CONTENT).hexdigest())

    asyncio.run(run())


def test_an_empty_copy() -> None:
    async def nothing() -> AsyncIterator[bytes]:
        return
        yield

    async def run() -> None:
        with LocalCopy() as copy:
            assert (await copy.write(nothing(), 10)).sha256 == hashlib.sha256(b"").hexdigest()
            assert copy.path.read_bytes() == b""

    asyncio.run(run())


def test_a_copy_that_is_too_large_is_refused_before_it_is_written() -> None:
    async def run() -> None:
        with LocalCopy() as copy:
            with pytest.raises(UploadTooLarge):
                await copy.write(pieces(1000), 1500)
            assert copy.path.stat().st_size <= 1500

    asyncio.run(run())
