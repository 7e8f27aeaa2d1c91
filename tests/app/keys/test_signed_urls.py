"""Addresses that carry their own permission: for one thing, for a while, to read it."""

import io
import logging
import re
import time
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
from tests.app.conftest import Service, problem


@pytest.fixture(scope="module")
def signatures(valkey: Any) -> UrlSigner:
    return UrlSigner(Redis.from_url(valkey.connection_url), Settings(url_secret="s" * 32))  # type: ignore[arg-type]


KEY = new_id("key")


@given(place=st.integers(0, 200), put=st.sampled_from("0aZ9_-."), path=st.text(min_size=1, max_size=8))
@example(place=0, put="0", path="/")
def test_a_token_that_was_changed_is_none(signatures: UrlSigner, place: int, put: str, path: str) -> None:
    token = signatures.sign("/v1/audio/x", KEY).partition("?token=")[2]
    assert signatures.verify(token, "/v1/audio/x") == KEY
    assert signatures.verify(token, f"/v1/audio/x{path}") is None
    changed = token[: place % len(token)] + put + token[place % len(token) + 1 :]
    if changed != token:
        # The last of 43 characters holds 4 bits only, but is compared as it is written.
        assert signatures.verify(changed, "/v1/audio/x") is None
    assert signatures.verify(token + put, "/v1/audio/x") is None


def test_addresses_live_one_to_two_periods_and_stay_the_same_within_one(
    signatures: UrlSigner, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [3600.0 * 1000]
    monkeypatch.setattr(time, "time", lambda: now[0])
    first = signatures.sign("/v1/audio/x", KEY)
    now[0] += 3599
    assert signatures.sign("/v1/audio/x", KEY) == first
    now[0] += 1
    second = signatures.sign("/v1/audio/x", KEY)
    assert second != first
    for later, living in ((0, [first, second]), (3599, [first, second]), (3600, [second]), (7200, [])):
        now[0] = 3600.0 * 1001 + later
        tokens = [address.partition("?token=")[2] for address in (first, second)]
        assert [t for t in tokens if signatures.verify(t, "/v1/audio/x")] == [
            address.partition("?token=")[2] for address in living
        ]


def test_processes_share_a_secret_that_one_of_them_made(redis: Redis) -> None:
    settings = Settings()
    one, other = UrlSigner(redis, settings), UrlSigner(redis, settings)
    token = one.sign("/v1/a%20b", KEY).partition("?token=")[2]
    assert other.verify(token, "/v1/a b") == KEY
    assert UrlSigner(redis, Settings(url_secret="another")).verify(token, "/v1/a b") is None  # type: ignore[arg-type]


def test_every_url_in_an_answer_opens_its_thing_and_nothing_else(keyed_service: Service) -> None:
    mine = keyed_service.with_key()
    audio = mine.upload()
    job = mine.separate(targets=[{"name": "a b", "label": "Dog"}])
    assert job["url"].partition("?")[0] == f"/v1/separations/{job['id']}"
    assert keyed_service.client.get(job["url"]).json() == job | {"queue": {"position": 1}}
    mine.finish(job["id"], {"a b": b"0123456789"})
    done = keyed_service.client.get(job["url"]).json()
    open_to_all = {
        audio["url"]: None,
        done["url"]: "application/json",
        done["archive_url"]: "application/zip",
        done["stems"][0]["url"]: "audio/flac",
    }
    for url, kind in open_to_all.items():
        path, _, token = url.partition("?token=")
        assert re.fullmatch(r"[A-Za-z0-9._-]+", token)
        answer = keyed_service.client.get(url)
        assert answer.status_code == 200 and kind in (None, answer.headers["content-type"])
        problem(keyed_service.client.get(path), 401, "unauthorized")
        for other in open_to_all:
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


def test_the_etag_stays_while_the_addresses_do(keyed_service: Service) -> None:
    mine = keyed_service.with_key()
    url = f"/v1/separations/{mine.separate()['id']}"
    etag = mine.client.get(url).headers["etag"]
    assert mine.client.get(url, headers={"If-None-Match": etag}).status_code == 304


def test_addresses_of_a_revoked_key_are_dead(keyed_service: Service) -> None:
    mine = keyed_service.with_key()
    job = mine.separate()
    assert keyed_service.client.get(job["url"]).status_code == 200
    KeyRepository(mine.deps.redis).revoke(mine.deps.caller.key_id)
    problem(keyed_service.client.get(job["url"]), 401, "unauthorized")


def test_locations_are_paths_and_need_the_key(keyed_service: Service) -> None:
    mine = keyed_service.with_key()
    request = {"mixture": {"audio_id": mine.recording()["id"]}, "targets": [{"label": "Dog"}]}
    answer = mine.client.post("/v1/separations", json=request)
    assert answer.headers["location"] == f"/v1/separations/{answer.json()['id']}"


def test_without_keys_addresses_are_plain(folder_service: Service) -> None:
    assert "token" not in str(folder_service.separate()) and "token" not in str(folder_service.upload())


def test_tokens_are_kept_out_of_logs(signatures: UrlSigner) -> None:
    record = logging.LogRecord("uvicorn.access", logging.INFO, "", 0, '%s - "%s %s HTTP/%s" %d', None, None)
    address = signatures.sign("/v1/audio/x", KEY)
    record.args = ("127.0.0.1:1", "GET", f"{address}&download=1", "1.1", 200)
    handler = logging.StreamHandler(io.StringIO())
    root = logging.getLogger()
    kept, level = root.handlers[:], root.level
    try:
        logs.configure(Settings())
        assert root.handlers[0].filter(record)
    finally:
        root.handlers[:] = kept
        root.setLevel(level)
    written = handler.format(record)
    assert written == '127.0.0.1:1 - "GET /v1/audio/x?token=...&download=1 HTTP/1.1" 200'
