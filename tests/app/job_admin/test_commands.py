"""`python -m app jobs`: operators list, show, cancel and delete the jobs of any key."""

import json
import time
from typing import Any

import pytest
from redis import Redis
from typer.testing import CliRunner, Result

from app.__main__ import cli
from app.jobs.kinds import KINDS, Kind
from app.jobs.listing import record_key
from app.keys.repository import KeyRepository
from app.records.detections import DetectionResult
from app.records.ids import new_id
from tests.app.conftest import Service, problem
from tests.app.job_api.test_kinds import create
from tests.app.large_jobs import detection_result

each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


@pytest.fixture
def run(keyed_service: Service, valkey: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run `python -m app jobs WORDS` on the deployment of `keyed_service`."""
    monkeypatch.setenv("EARMARK_REDIS_URL", valkey.connection_url)
    monkeypatch.setenv("EARMARK_HOME", str(keyed_service.deps.settings.home))

    def command(*words: str) -> Result:
        return CliRunner().invoke(cli, ["jobs", *words])

    return command


def named(service: Service, name: str) -> Service:
    """Return the service with a client of a new key that has a name of its own."""
    mine = service.with_key()
    keys = KeyRepository(service.deps.redis)
    key = keys.get(mine.deps.caller.key_id).model_copy(update={"name": name})
    service.deps.redis.hset("earmark:keys", key.id, key.model_dump_json())
    return mine


def created(service: Service, kind: Kind = KINDS["separation"]) -> str:
    time.sleep(0.002)  # ids sort by the millisecond
    return create(service, kind).json()["id"]


def listed(run: Any, *words: str) -> list[str]:
    """Return the ids that `jobs list` prints as JSON, which are those of its table."""
    result = run("list", "--json", *words)
    assert result.exit_code == 0, result.output
    found = [json.loads(line)["id"] for line in result.stdout.splitlines()]
    table = run("list", *words).stdout.splitlines()
    assert table[0].split() == ["id", "created", "(UTC)", "status", "audio", "s", "model", "key"]
    assert [line.split()[0] for line in table[1:]] == found
    return found


def test_jobs_are_listed_the_newest_first_by_key_kind_and_state(keyed_service: Service, run: Any) -> None:
    assert listed(run) == []
    web, batch = named(keyed_service, "web"), named(keyed_service, "batch")
    first, second = created(web), created(batch)
    third = created(web, KINDS["detection"])
    fourth = created(web)
    web.finish(first)
    assert listed(run) == [fourth, third, second, first]
    assert listed(run, "--limit", "2") == [fourth, third]
    assert listed(run, "--key", "web") == listed(run, "--key", web.deps.caller.key_id) == [fourth, third, first]
    assert listed(run, "--kind", "separation") == [fourth, second, first]
    assert listed(run, "--status", "succeeded") == [first]
    assert listed(run, "--key", "batch", "--kind", "detection") == []
    KeyRepository(keyed_service.deps.redis).revoke(batch.deps.caller.key_id)
    assert listed(run, "--key", batch.deps.caller.key_id) == [second]
    assert f"{batch.deps.caller.key_id} (revoked)" in run("list").stdout
    unknown = run("list", "--key", "batch")
    assert unknown.exit_code == 1 and "no key named batch" in unknown.stderr


def test_long_lists_are_read_page_by_page(keyed_service: Service, run: Any, redis: Redis) -> None:
    """More jobs of each of two keys than a page holds, by turns, with one in another state behind them."""
    services = [keyed_service.with_key() for _ in range(2)]
    mixtures = [{"audio_id": service.recording()["id"]} for service in services]
    jobs = keyed_service.deps.jobs
    pattern = jobs.get(services[0].separate(mixture=mixtures[0])["id"])
    jobs.cancel(pattern.id)
    made = [pattern.id]
    for index in range(110):
        service = services[index % 2]
        job = pattern.model_copy(update={"id": new_id("sep", time.time() + index / 100), "audio_ids": []})
        job = job.model_copy(update={"owner": service.deps.caller.key_id})
        redis.set(record_key(job.id), job.document())
        with redis.pipeline() as pipe:
            jobs.listing.add(pipe, job)
            pipe.execute()
        made.append(job.id)
    assert listed(run, "--limit", "1000") == made[::-1]
    assert listed(run, "--status", "canceled") == [pattern.id]


def test_jobs_of_many_keys_are_read_together(keyed_service: Service, run: Any, redis: Redis) -> None:
    """Not list by list: a thousand keys have three thousand."""
    jobs = keyed_service.deps.jobs
    pattern = jobs.get(created(keyed_service.with_key()))
    now, made = time.time(), [pattern.id]
    with redis.pipeline() as pipe:
        for number in range(1000):
            changed = {"id": new_id("sep", now + number + 1), "owner": new_id("key"), "audio_ids": []}
            job = pattern.model_copy(update=changed)
            pipe.set(record_key(job.id), job.document())
            jobs.listing.add(pipe, job)
            made.append(job.id)
        pipe.execute()
    before = redis.info("stats")["total_reads_processed"]  # pyright: ignore[reportIndexIssue]
    assert listed(run, "--limit", "60") == made[:-61:-1]
    reads = redis.info("stats")["total_reads_processed"] - before  # pyright: ignore[reportIndexIssue]
    assert reads < 500, "round trips, and parts of long requests"


def test_a_job_is_shown_with_all_that_its_record_tells(keyed_service: Service, run: Any) -> None:
    mine = named(keyed_service, "web")
    job_id = created(mine)
    shown = run("show", job_id).stdout
    for text in (job_id, "queued", f"{mine.deps.caller.key_id} web", "1 in the queue", "dog: queued"):
        assert text in shown, shown
    mine.finish(job_id)
    shown = run("show", job_id).stdout
    for text in ("succeeded", "dog: succeeded, present with 0.90", "separating 0.1", "expires"):
        assert text in shown, shown
    record = json.loads(run("show", job_id, "--json").stdout)
    assert record["result"]["stems"][0]["name"] == "dog" and record["owner"] == mine.deps.caller.key_id


def test_a_large_result_is_shown_from_the_store_and_without_it(keyed_service: Service, run: Any) -> None:
    mine = keyed_service.with_key()
    job_id = created(mine, KINDS["detection"])
    result: DetectionResult = detection_result(mine.deps.jobs.get(job_id).audio_ids[0], events=300)
    mine.publish(job_id, result)
    assert len(json.loads(run("show", job_id, "--json").stdout)["result"]["events"]) == 300
    keyed_service.deps.storage.delete_prefix("records")
    without = run("show", job_id)
    assert without.exit_code == 0 and "succeeded" in without.stdout and "result" in without.stderr


@each_kind
def test_a_waiting_job_is_canceled_and_a_running_one_asked_to_stop(
    keyed_service: Service, run: Any, kind: Kind
) -> None:
    mine = keyed_service.with_key()
    waiting, running, done = (created(mine, kind) for _ in range(3))
    jobs = mine.deps.jobs
    assert jobs.claim(running, "e") is not None
    jobs.cancel(done)
    result = run("cancel", waiting, done, running)
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [f"{waiting}  canceled", f"{running}  asked to stop"]
    assert f"{done}  The {kind.name} is canceled; only a queued or running one can be canceled" in result.stderr
    url = f"/v1/{kind.folder}/{waiting}"
    assert mine.client.get(url).json()["status"] == "canceled"
    assert jobs.should_stop(running, "e")


@each_kind
def test_a_job_is_deleted_with_all_that_it_has_stored(keyed_service: Service, run: Any, kind: Kind) -> None:
    mine = keyed_service.with_key()
    if kind.name == "query":
        job_id = mine.saved_query(excerpt_bytes=1000)
        assert mine.deps.jobs.excerpt_bytes.total(mine.deps.caller.key_id) == 1000
    else:
        job_id = created(mine, kind)
        mine.deps.storage.put(f"{kind.folder}/{job_id}/e/0.flac", b"fLaC")
    assert [key for key in mine.stored_keys() if job_id in key]
    result = run("delete", job_id)
    assert (result.exit_code, result.stdout) == (0, f"{job_id}  deleted\n")
    problem(mine.client.get(f"/v1/{kind.folder}/{job_id}"), 404, "not_found")
    assert [key for key in mine.stored_keys() if job_id in key] == [] == listed(run)
    assert mine.deps.jobs.excerpt_bytes.total(mine.deps.caller.key_id) == 0
    again = run("delete", job_id)
    assert again.exit_code == 1 and "no such job" in again.stderr


def test_a_job_is_deleted_while_the_store_does_not_answer(
    keyed_service: Service, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = created(keyed_service.with_key())
    for name, value in (("", "s3://earmark"), ("_ENDPOINT", "http://127.0.0.1:9"), ("_TIMEOUT", "0.2")):
        monkeypatch.setenv(f"EARMARK_STORE{name}", value)
    result = run("delete", job_id)
    assert result.exit_code == 0 and "housekeeping deletes the files" in result.stdout
    assert listed(run) == []
    assert f"separations/{job_id}".encode() in keyed_service.orphans()


def test_a_damaged_job_is_deleted_out_of_the_list_of_its_key(keyed_service: Service, run: Any, redis: Redis) -> None:
    mine = keyed_service.with_key()
    damaged, whole = created(mine), created(mine)
    redis.set(record_key(damaged), "{")
    shown = run("show", damaged)
    assert shown.exit_code == 1 and "damaged" in shown.stderr
    assert run("delete", damaged).exit_code == 0
    assert listed(run) == [whole]
    assert redis.zrange(mine.deps.jobs.listing.key(mine.deps.caller.key_id, "separation"), 0, -1) == [whole.encode()]


@pytest.mark.parametrize("word", ["show", "cancel", "delete"])
@pytest.mark.parametrize("job_id", ["*", new_id("aud"), new_id("sep")])
def test_what_is_not_a_job_is_told_in_a_sentence(run: Any, word: str, job_id: str) -> None:
    result = run(word, job_id)
    assert result.exit_code == 1 and result.stdout == "" and len(result.stderr.splitlines()) == 1


def test_a_queue_that_does_not_answer_is_told_in_a_sentence(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EARMARK_REDIS_URL", "redis://:hush@127.0.0.1:9")
    result = run("list")
    assert result.exit_code == 1 and "does not answer" in result.stderr and "hush" not in result.output
