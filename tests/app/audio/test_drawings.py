"""Spectrograms and peaks of sections over HTTP: of uploads and stems, cached, within budgets, by signed links."""

import asyncio
import io
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import soundfile
from PIL import Image
from redis import Redis

from app.errors import NotFound, SpanOutside
from app.local_copies import LocalCopies
from app.media import spectrogram, waveform
from app.media.spectrogram import Tile
from app.media.waveform import MAX_BINS
from app.records.audio import store_key
from app.settings import Settings
from tests import media_files
from tests.app.conftest import LIMITS, Service, empty, eventually, problem, serve, wav

MISSING = "/v1/audio/aud_01HZZZZZZZZZZZZZZZZZZZZZZZ"
FULL = {"width": 40, "height": 32}  # of a whole recording
SECTION = {"start": 0.25, "end": 0.75}
TILE = SECTION | FULL


@pytest.fixture(scope="module")
def _strict_service(valkey: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("strict")
    choices: dict[str, Any] = {**LIMITS, "auth": "on", "section_slots": 4, "budget_patience": 0.0, "drawing_cache": 0}
    yield from serve(Settings(home=folder, redis_url=valkey.connection_url, **choices), folder)


@pytest.fixture
def strict_service(_strict_service: Service, redis: Redis) -> Service:
    """The front end with keys and without a cache of drawings, for 4 sections; nothing waits."""
    return empty(_strict_service)


@pytest.fixture(scope="module")
def _long_service(valkey: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("long")
    choices: dict[str, Any] = {**LIMITS, "recording_seconds": 3600.0}
    yield from serve(Settings(home=folder, redis_url=valkey.connection_url, **choices), folder)


@pytest.fixture
def long_service(_long_service: Service, redis: Redis) -> Service:
    """The front end for recordings of an hour, which take seconds to decode."""
    return empty(_long_service)


def colors(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    return np.array(Image.open(io.BytesIO(answer.content)))


def finished_job(service: Service, content: bytes) -> dict[str, Any]:
    """Return a separation with this content as its stem."""
    job = service.separate()
    service.finish(job["id"], {"dog": content})
    return service.client.get(f"/v1/separations/{job['id']}").json()


def flac(seconds: float = 1.0) -> bytes:
    samples = np.random.default_rng(1).uniform(-0.5, 0.5, round(16000 * seconds))
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16000, format="FLAC")
    return buffer.getvalue()


def test_a_spectrogram_of_an_upload(service: Service) -> None:
    audio = service.recording()
    url = f"/v1/audio/{audio['id']}/spectrogram"
    answer = service.client.get(url, params=TILE)
    (service.folder / "a.wav").write_bytes(wav())
    expected = spectrogram.read(service.folder / "a.wav", Tile(0.25, 0.75, 40, 32))
    assert answer.content == expected and colors(answer).shape == (32, 40)
    assert answer.headers["cache-control"] == "private, max-age=3600"
    etag = answer.headers["etag"]
    assert service.client.get(url, params=TILE, headers={"If-None-Match": etag}).status_code == 304
    other = service.client.get(url, params=TILE | {"width": 41}, headers={"If-None-Match": etag})
    assert other.status_code == 200 and other.headers["etag"] != etag


def test_by_default_the_whole_recording_is_drawn(folder_service: Service) -> None:
    url = f"/v1/audio/{folder_service.recording()['id']}/spectrogram"
    whole = colors(folder_service.client.get(url, params=FULL))
    np.testing.assert_array_equal(whole, colors(folder_service.client.get(url, params=FULL | {"start": 0, "end": 1})))
    assert colors(folder_service.client.get(url)).shape == (256, 1000)


def test_drawings_are_kept(folder_service: Service) -> None:
    """The second request does not read the bytes, which are not there any more."""
    audio = folder_service.recording()
    urls = [f"/v1/audio/{audio['id']}/{drawing}" for drawing in ("spectrogram", "peaks")]
    first = [folder_service.client.get(url, params=SECTION) for url in urls]
    folder_service.deps.storage.delete(store_key(audio["id"]))
    second = [folder_service.client.get(url, params=SECTION) for url in urls]
    assert [answer.content for answer in first] == [answer.content for answer in second]
    problem(folder_service.client.get(urls[0], params={"start": 0.25, "end": 0.8}), 404, "not_found")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("width", "0"), ("width", "2001"), ("height", "15"), ("height", "513"), ("track", "0")),
        *(("start", "-1"), ("start", "x"), ("end", "nan"), ("end", "inf")),
    ],
)
def test_parameters_have_bounds(folder_service: Service, name: str, value: str) -> None:
    url = f"/v1/audio/{folder_service.recording()['id']}/spectrogram"
    document = problem(folder_service.client.get(url, params={**TILE, name: value}), 422, "request_invalid")
    assert [error["parameter"] for error in document["errors"]] == [name]


@pytest.mark.parametrize("drawing", ["spectrogram", "peaks"])
@pytest.mark.parametrize(("start", "end"), [(0.5, 0.5), (0.5, 0.2), (1.0, 2.0), (40, 41), (0, 1e9), (1e300, 2e300)])
def test_sections_that_no_recording_has_are_refused(
    folder_service: Service, drawing: str, start: float, end: float
) -> None:
    url = f"/v1/audio/{folder_service.recording()['id']}/{drawing}"
    problem(folder_service.client.get(url, params={"start": start, "end": end}), 422, "span_outside")


@pytest.mark.parametrize("drawing", ["spectrogram", "peaks"])
def test_there_are_no_drawings_of_what_is_missing(folder_service: Service, drawing: str) -> None:
    problem(folder_service.client.get(f"{MISSING}/{drawing}", params=TILE), 404, "not_found")
    job = finished_job(folder_service, flac())
    problem(folder_service.client.get(f"{job['url']}/stems/cat/{drawing}", params=TILE), 404, "not_found")


def test_drawings_of_a_stem(service: Service) -> None:
    stem = finished_job(service, flac())["stems"][0]
    assert colors(service.client.get(stem["spectrogram_url"], params=TILE)).shape == (32, 40)
    for section in ({}, {"start": 0.5, "end": 0.75}):
        peaks = service.client.get(stem["peaks_url"], params={"points": 10, **section}).json()
        assert (peaks["start"], peaks["duration"]) == (section.get("start", 0.0), 0.25 if section else 1.0)
        assert peaks["points"] == 10 and 0.3 < peaks["channels"][0]["maximum"][4] < 0.51


def test_drawings_of_expired_stems_are_gone(folder_service: Service) -> None:
    job = finished_job(folder_service, flac())
    stem = job["stems"][0]
    drawings = [stem["peaks_url"], stem["spectrogram_url"]]
    for url in drawings:  # they are in the cache now
        assert folder_service.client.get(url, params=TILE).status_code == 200
    folder_service.deps.jobs.expire(job["id"])
    for url in drawings:
        problem(folder_service.client.get(url, params=TILE), 410, "stems_expired")


def test_signed_links_open_one_drawing_each(keyed_service: Service) -> None:
    mine, other = keyed_service.with_key(), keyed_service.with_key()
    links = [mine.upload(), finished_job(mine, flac())["stems"][0]]
    urls = [linked[f"{drawing}_url"] for linked in links for drawing in ("peaks", "spectrogram")]
    for url in urls:
        assert keyed_service.client.get(f"{url}&start=0.2&end=0.8").status_code == 200
        path, _, token = url.partition("?")
        problem(keyed_service.client.get(path), 401, "unauthorized")
        problem(other.client.get(path), 404, "not_found")
        for another in set(urls) - {url}:
            problem(keyed_service.client.get(f"{another.partition('?')[0]}?{token}"), 401, "unauthorized")


def test_a_key_that_has_used_up_its_share_of_sections_is_refused(strict_service: Service) -> None:
    one, two, three = (strict_service.with_key() for _ in range(3))
    sections = strict_service.deps.budgets.sections
    urls = {key.deps.caller.key_id: f"/v1/audio/{key.recording()['id']}" for key in (one, two, three)}

    def draw(key: Service, drawing: str) -> httpx.Response:
        return key.client.get(f"{urls[key.deps.caller.key_id]}/{drawing}", params=SECTION)

    for used, key in ((2, one), (2, two)):
        sections.take(key.deps.caller.key_id, used)
        for drawing in ("spectrogram", "peaks"):
            problem(draw(key, drawing), 429, "rate_limited")
    problem(draw(three, "spectrogram"), 503, "overloaded")
    for key in (one, two):
        sections.give_back(key.deps.caller.key_id, 2)
    assert draw(three, "spectrogram").status_code == draw(one, "peaks").status_code == 200
    assert sections.used == 0


def test_a_client_that_leaves_gives_up_its_place(folder_service: Service) -> None:
    """Pages that are scrolled do not want the tiles any more that they have asked for."""
    sections, url = folder_service.deps.budgets.sections, f"/v1/audio/{folder_service.recording()['id']}/spectrogram"
    sections.take("", sections.total)
    try:
        with socket.create_connection(folder_service.address, timeout=60) as connection:
            connection.sendall(f"GET {url}?start=0.25&end=0.75 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            eventually(lambda: sections.waiting == 1)
        eventually(lambda: sections.waiting == 0)
    finally:
        sections.give_back("", sections.total)


def ask(service: Service, path: str) -> socket.socket:
    """Send a request and return its connection, to be closed before the response."""
    connection = socket.create_connection(service.address, timeout=60)
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return connection


@pytest.mark.parametrize("drawing", ["peaks?", "spectrogram?", "peaks?start=0.25&end=0.75&"])
def test_a_drawing_waits_for_as_long_as_one_client_does(folder_service: Service, drawing: str) -> None:
    """Requests for the same drawing wait together, and hold one place."""
    url = f"/v1/audio/{folder_service.recording()['id']}/{drawing}"
    budgets = folder_service.deps.budgets
    budget = budgets.sections if "start" in drawing else budgets.waveforms
    budget.take("", budget.total)
    try:
        with ask(folder_service, f"{url}points=10"):
            eventually(lambda: budget.waiting == 1)
            with ask(folder_service, url):
                eventually(lambda: budgets.requests.used == 2)
            eventually(lambda: budgets.requests.used == 1)
            assert budget.waiting == 1
        eventually(lambda: budget.waiting == budgets.requests.used == 0)
    finally:
        budget.give_back("", budget.total)


def decoders() -> list[psutil.Process]:
    """Return the processes that decode for this process: the children of its zygote."""
    [zygote] = [child for child in psutil.Process().children() if "app.media.zygote" in child.cmdline()]
    return zygote.children()


@pytest.fixture(scope="module")
def half_an_hour(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file that takes a second of processor time to write, and as long to decode."""
    path = tmp_path_factory.mktemp("half-an-hour") / "long.flac"
    media_files.write_flac_silence(path, 1800)
    return path.read_bytes()


@pytest.mark.parametrize("drawing", ["peaks", "spectrogram", "peaks?start=1&end=1800", "spectrogram?start=1&end=1800"])
def test_a_decoder_is_killed_when_no_client_waits_for_it(
    long_service: Service, half_an_hour: bytes, drawing: str
) -> None:
    audio_id = long_service.upload(half_an_hour)["id"]
    eventually(lambda: not decoders())  # that of the probe
    with ask(long_service, f"/v1/audio/{audio_id}/{drawing}"):
        eventually(decoders)
        [decoder] = decoders()
    eventually(lambda: not decoder.is_running())
    budgets = long_service.deps.budgets
    eventually(lambda: budgets.waveforms.used == budgets.sections.used == 0)
    assert not decoders()
    assert long_service.stored_keys() == [store_key(audio_id)]  # without a waveform: it was not finished


@pytest.mark.parametrize("drawing", ["spectrogram", "peaks"])
@pytest.mark.parametrize("content", [b"0123456789", b"", flac()[:200]])
def test_a_stem_that_cannot_be_decoded_is_refused(folder_service: Service, drawing: str, content: bytes) -> None:
    url = f"{finished_job(folder_service, content)['url']}/stems/dog/{drawing}"
    for section in (SECTION, {}):
        problem(folder_service.client.get(url, params=section), 422, "audio_undecodable")


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.001), (0.3333, 0.3377), (1.0, 7.0), (8.123, 8.5), (7.99, 12.0)])
def test_peaks_of_a_section_are_those_of_its_samples(tmp_path: Path, start: float, end: float) -> None:
    """Before and behind a seek: exact to the sample."""
    rate, sound = 44100, media_files.noise(44100 * 10)
    media_files.write_sound(tmp_path / "a.flac", sound, rate, "PCM_16")
    drawn = waveform.read_section(tmp_path / "a.flac", start, end)
    first, last = int(start * rate), min(sound.shape[1], int(np.ceil(end * rate)))
    assert drawn.samples == last - first and len(drawn.minima[0]) <= MAX_BINS
    for channel, minima, maxima in zip(sound, drawn.minima, drawn.maxima, strict=True):
        bins = [channel[first:last][at : at + drawn.bin_size] for at in range(0, last - first, drawn.bin_size)]
        np.testing.assert_allclose(minima, [each.min() for each in bins], atol=1e-4)
        np.testing.assert_allclose(maxima, [each.max() for each in bins], atol=1e-4)


def test_a_section_behind_the_end_is_refused(tmp_path: Path) -> None:
    media_files.write_sound(tmp_path / "a.flac", media_files.noise(44100), 44100, "PCM_16")
    with pytest.raises(SpanOutside):
        asyncio.run(waveform.compute(tmp_path / "a.flac", Settings(), section=(2.0, 3.0)))


def test_coarse_peaks_of_a_section_come_from_the_whole_waveform(folder_service: Service) -> None:
    """The bytes are not there any more."""
    audio = folder_service.recording()
    url = f"/v1/audio/{audio['id']}/peaks"
    whole = folder_service.client.get(url, params={"points": 1000}).json()
    folder_service.deps.storage.delete(store_key(audio["id"]))
    part = folder_service.client.get(url, params={"points": 250, "start": 0.5, "end": 0.75}).json()
    assert (part["start"], part["duration"], part["points"]) == (0.5, 0.25, 250)
    assert part["channels"][0]["minimum"] == whole["channels"][0]["minimum"][500:750]
    rest = folder_service.client.get(url, params={"points": 100, "start": 0.9}).json()
    assert (rest["start"], round(rest["duration"], 9)) == (0.9, 0.1)


def test_a_copy_of_a_file_in_s3_is_shared_and_kept_for_the_next_section(s3_service: Service) -> None:
    """The object is not there any more when the second section is drawn."""
    audio = s3_service.recording()
    url = f"/v1/audio/{audio['id']}/spectrogram"
    assert s3_service.client.get(url, params=TILE).status_code == 200
    s3_service.deps.storage.delete(store_key(audio["id"]))
    assert s3_service.client.get(url, params=TILE | {"width": 41}).status_code == 200


def test_copies_are_shared_while_they_are_used_and_dropped_afterwards(s3_service: Service) -> None:
    storage, keys = s3_service.deps.storage, [store_key(s3_service.recording()["id"]) for _ in range(3)]
    size = storage.size(keys[0])

    async def open_all(copies: LocalCopies) -> list[Path]:
        async with AsyncExitStack() as stack:
            opened = [stack.enter_async_context(copies.open(key, size)) for key in [*keys, keys[0]]]
            paths = list(await asyncio.gather(*opened))
            assert [path.read_bytes() for path in paths] == [wav()] * 4 and paths[0] == paths[3]
        return paths

    async def run() -> None:
        for room, kept in ((0, 0), (2 * size, 2), (3 * size, 3)):
            copies = LocalCopies(storage, room, 60.0)
            paths = await open_all(copies)
            assert len({path for path in paths if path.exists()}) == kept
            copies.close()
            assert not any(path.exists() for path in paths)

    asyncio.run(run())


def test_a_missing_object_is_not_kept(s3_service: Service) -> None:
    key, copies = store_key(s3_service.recording()["id"]), LocalCopies(s3_service.deps.storage, 1 << 20, 60.0)
    size = s3_service.deps.storage.size(key)

    async def run() -> None:
        for _ in range(2):
            with pytest.raises(NotFound):
                async with copies.open("audio/missing", size):
                    pass
        async with copies.open(key, size) as path:
            assert path.read_bytes() == wav()
        copies.close()

    asyncio.run(run())
