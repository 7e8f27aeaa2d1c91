"""Signed URLs give read access to one resource, for a time."""

import logging
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from redis import Redis

from app import logs
from app.keys.repository import KeyRepository
from app.keys.signed_urls import UrlSigner
from app.records.ids import new_id
from app.settings import Settings
from tests.app.conftest import Service, eventually, problem
from tests.full_redis import FULL, memory_in_use


@pytest.fixture(scope="module")
def url_signer(valkey: Any) -> UrlSigner:
    return UrlSigner(Redis.from_url(valkey.connection_url), Settings(url_secret="s" * 32))  # type: ignore[arg-type]


KEY = new_id("key")


@given(index=st.integers(0, 200), character=st.sampled_from("0aZ9_-."), path=st.text(min_size=1, max_size=8))
@example(index=0, character="0", path="/")
def test_a_modified_token_is_invalid(url_signer: UrlSigner, index: int, character: str, path: str) -> None:
    token = url_signer.sign("/v1/audio/x", KEY).partition("?token=")[2]
    assert url_signer.verify(token, "/v1/audio/x") == KEY
    assert url_signer.verify(token, f"/v1/audio/x{path}") is None
    modified = token[: index % len(token)] + character + token[index % len(token) + 1 :]
    if modified != token:
        # The last of 43 characters has only 4 significant bits, but is compared as text.
        assert url_signer.verify(modified, "/v1/audio/x") is None
    assert url_signer.verify(token + character, "/v1/audio/x") is None


PERIOD = 3600.0  # s, the default of `url_seconds`


@pytest.fixture
def signer_at(redis: Redis) -> Callable[[float], UrlSigner]:
    """Signers with one secret whose clocks stand at a number of periods since 1970."""
    settings = Settings(url_secret="s" * 32)  # type: ignore[arg-type]
    return lambda periods: UrlSigner(redis, settings, clock=lambda: periods * PERIOD)


def test_a_signed_url_stays_the_same_within_a_period(signer_at: Callable[[float], UrlSigner]) -> None:
    url = signer_at(1000).sign("/v1/audio/x", KEY)
    assert signer_at(1000 + 3599 / PERIOD).sign("/v1/audio/x", KEY) == url
    assert signer_at(1001).sign("/v1/audio/x", KEY) != url


@pytest.mark.parametrize(("seconds", "valid"), [(0, [1000, 1001]), (3599, [1000, 1001]), (3600, [1001]), (7200, [])])
def test_a_signed_url_is_valid_for_one_to_two_periods(
    signer_at: Callable[[float], UrlSigner], seconds: float, valid: list[int]
) -> None:
    """The URLs are signed at the beginning of periods 1000 and 1001, and verified so many seconds after the latter."""
    tokens = {period: signer_at(period).sign("/v1/audio/x", KEY).partition("?token=")[2] for period in (1000, 1001)}
    verifier = signer_at(1001 + seconds / PERIOD)
    assert [period for period, token in tokens.items() if verifier.verify(token, "/v1/audio/x")] == valid


def test_processes_share_a_generated_secret(redis: Redis) -> None:
    settings = Settings()
    one, other = UrlSigner(redis, settings), UrlSigner(redis, settings)
    token = one.sign("/v1/a%20b", KEY).partition("?token=")[2]
    assert other.verify(token, "/v1/a b") == KEY
    assert UrlSigner(redis, Settings(url_secret="another")).verify(token, "/v1/a b") is None  # type: ignore[arg-type]


def test_processes_that_start_at_once_on_an_empty_server_share_a_secret(valkey: Any, redis: Redis) -> None:
    signers = [UrlSigner(Redis.from_url(valkey.connection_url), Settings(), clock=lambda: 0.0) for _ in range(8)]
    start = threading.Barrier(len(signers))

    def sign(signer: UrlSigner) -> str:
        start.wait(200)
        return signer.sign("/v1/audio/x", KEY)

    for _ in range(5):
        redis.flushall()
        with ThreadPoolExecutor(len(signers)) as threads:
            assert len(set(threads.map(sign, signers))) == 1
        signers = [UrlSigner(Redis.from_url(valkey.connection_url), Settings(), clock=lambda: 0.0) for _ in signers]


def test_threads_that_sign_at_once_on_an_empty_server_report_no_loss(
    valkey: Any, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    class InterruptedRedis(Redis):
        """A client that lets another thread of the process sign between its first read and what follows."""

        def get(self, name: Any) -> Any:
            reply = super().get(name)
            if not urls:
                urls.append("")
                urls[0] = signer.sign("/v1/audio/x", KEY)
            return reply

    urls: list[str] = []
    with InterruptedRedis.from_url(valkey.connection_url) as client:
        signer = UrlSigner(client, Settings(), clock=lambda: 0.0)
        assert [signer.sign("/v1/audio/x", KEY)] == urls
    assert not caplog.records


def test_a_process_writes_back_the_secret_that_the_server_has_lost(redis: Redis) -> None:
    url = "/v1/audio/x"
    living = UrlSigner(redis, Settings(), clock=lambda: 0.0, refresh_seconds=0.02)
    before, edition = living.sign(url, KEY), living.edition
    redis.flushall()

    def is_written_back() -> bool:
        assert living.sign(url, KEY) == before
        return bool(redis.keys())

    eventually(is_written_back)
    living.close()
    assert UrlSigner(redis, Settings(), clock=lambda: 0.0).sign(url, KEY) == before
    assert living.edition == edition


def test_all_processes_follow_when_another_secret_was_written(redis: Redis) -> None:
    """By a process that was first after a loss, or by an operator."""
    url = "/v1/audio/x"
    living = [UrlSigner(redis, Settings(), clock=lambda: 0.0, refresh_seconds=0.02) for _ in range(2)]
    before, editions = living[0].sign(url, KEY), {signer.edition for signer in living}
    redis.set("earmark:url-secret", b"n" * 32)
    after = UrlSigner(redis, Settings(), clock=lambda: 0.0).sign(url, KEY)
    assert after != before
    eventually(lambda: all(signer.sign(url, KEY) == after for signer in living))
    for signer in living:
        signer.close()
    assert not editions & {signer.edition for signer in living}
    assert [signer.verify(before.partition("?token=")[2], url) for signer in living] == [None, None]


def test_a_secret_of_the_settings_is_not_shared(redis: Redis) -> None:
    signer = UrlSigner(redis, Settings(url_secret="s" * 32), clock=lambda: 0.0, refresh_seconds=0.0)  # type: ignore[arg-type]
    assert len({signer.sign("/v1/audio/x", KEY) for _ in range(100)}) == 1
    assert redis.keys() == []


def test_a_process_that_starts_on_a_full_server_reads_the_secret(redis: Redis) -> None:
    url = UrlSigner(redis, Settings(), clock=lambda: 0.0).sign("/v1/audio/x", KEY)
    with memory_in_use(redis, FULL):
        assert UrlSigner(redis, Settings(), clock=lambda: 0.0).sign("/v1/audio/x", KEY) == url


def test_every_url_in_a_response_opens_its_resource_and_nothing_else(keyed_service: Service) -> None:
    mine = keyed_service.with_key()
    audio = mine.upload()
    job = mine.separate(targets=[{"name": "a b", "label": "Dog"}])
    assert job["url"].partition("?")[0] == f"/v1/separations/{job['id']}"
    assert keyed_service.client.get(job["url"]).json() == job | {"queue": {"position": 1}}
    mine.finish(job["id"], {"a b": b"0123456789"})
    done = keyed_service.client.get(job["url"]).json()
    content_types = {
        audio["url"]: None,
        done["url"]: "application/json",
        done["archive_url"]: "application/zip",
        done["stems"][0]["url"]: "audio/flac",
    }
    for url, content_type in content_types.items():
        path, _, token = url.partition("?token=")
        assert re.fullmatch(r"[A-Za-z0-9._-]+", token)
        answer = keyed_service.client.get(url)
        assert answer.status_code == 200 and content_type in (None, answer.headers["content-type"])
        problem(keyed_service.client.get(path), 401, "unauthorized")
        for other in content_types:
            if other != url:
                answer = keyed_service.client.get(f"{other.partition('?')[0]}?token={token}")
                problem(answer, 401, "unauthorized")
        for method in ("DELETE", "POST"):
            problem(keyed_service.client.request(method, url), 401, "unauthorized")
        problem(keyed_service.client.get(f"{url}&token={token}"), 401, "unauthorized")
    stem = done["stems"][0]["url"]
    assert keyed_service.client.get(stem, headers={"Range": "bytes=2-4"}).content == b"234"
    assert keyed_service.client.head(stem).headers["content-length"] == "10"
    listed = mine.client.get("/v1/separations").json()["data"][0]
    assert keyed_service.client.get(listed["url"]).json()["id"] == job["id"]


def test_the_etag_stays_the_same_within_a_period(keyed_service: Service) -> None:
    mine = keyed_service.with_key()
    url = f"/v1/separations/{mine.separate()['id']}"
    etag = mine.client.get(url).headers["etag"]
    assert mine.client.get(url, headers={"If-None-Match": etag}).status_code == 304


def test_signed_urls_of_a_revoked_key_are_invalid(keyed_service: Service) -> None:
    mine = keyed_service.with_key()
    job = mine.separate()
    assert keyed_service.client.get(job["url"]).status_code == 200
    KeyRepository(mine.deps.redis).revoke(mine.deps.caller.key_id)
    problem(keyed_service.client.get(job["url"]), 401, "unauthorized")


def test_locations_are_not_signed(keyed_service: Service) -> None:
    mine = keyed_service.with_key()
    request = {"mixture": {"audio_id": mine.recording()["id"]}, "targets": [{"label": "Dog"}]}
    answer = mine.client.post("/v1/separations", json=request)
    assert answer.headers["location"] == f"/v1/separations/{answer.json()['id']}"


def test_without_authentication_urls_are_not_signed(folder_service: Service) -> None:
    assert "token" not in str(folder_service.separate()) and "token" not in str(folder_service.upload())


def test_tokens_are_not_logged(url_signer: UrlSigner) -> None:
    record = logging.LogRecord("uvicorn.access", logging.INFO, "", 0, '%s - "%s %s HTTP/%s" %d', None, None)
    url = url_signer.sign("/v1/audio/x", KEY)
    record.args = ("127.0.0.1:1", "GET", f"{url}&download=1", "1.1", 200)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        logs.configure(Settings())
        assert root.handlers[0].filter(record)
        line = root.handlers[0].format(record)
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    assert line.partition("uvicorn.access: ")[2] == '127.0.0.1:1 - "GET /v1/audio/x?token=...&download=1 HTTP/1.1" 200'
