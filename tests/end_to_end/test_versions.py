"""A rolling upgrade of the model and a rollback, under load: every job is done once, by what its request asked for."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from app.jobs.events import RecordReplay, read_all
from app.records.separations import SeparationResult
from tests.app.conftest import wav
from tests.end_to_end.deployment import TIMEOUT, Deployment, eventually
from tests.end_to_end.figures import SOAK, Figures
from tests.end_to_end.small_model import save_small_model
from tests.ports import free_ports

JOBS_OF_A_KIND = 20 if SOAK else 3  # 200 jobs in all, or 30
# s for all jobs, one after another: on a busy machine each takes seconds
PATIENCE = max(TIMEOUT, 50.0 * JOBS_OF_A_KIND)
OLD, NEW = "base@small", "base@next"


@pytest.fixture
def next_model(tmp_path: Path) -> Path:
    folder = tmp_path / "next"
    folder.mkdir()
    save_small_model(folder, "next")
    return folder


class Client:
    """Creates jobs in phases of the upgrade, and remembers what each of them asked for."""

    def __init__(self, deployment: Deployment, client: httpx.Client) -> None:
        self._deployment = deployment
        self._client = client
        uploaded = client.post("/v1/audio", files={"file": ("street.wav", wav())})
        assert uploaded.status_code == 201, uploaded.text
        self._audio_id = uploaded.json()["id"]
        self.jobs: dict[str, tuple[str, str | None]] = {}  # by id: the phase, and the model that was named

    def post(self, model: str | None) -> httpx.Response:
        body = {"mixture": {"audio_id": self._audio_id}, "targets": [{"label": "Dog"}]}
        return self._client.post("/v1/separations", json=body | ({} if model is None else {"model": model}))

    def create(self, phase: str, *models: str | None) -> None:
        """Create jobs that name these models by turns."""
        for _ in range(JOBS_OF_A_KIND):
            for model in models:
                answer = self.post(model)
                assert answer.status_code == 202, answer.text
                self.jobs[answer.json()["id"]] = phase, model

    def versions(self) -> dict[str, tuple[int, bool]]:
        """Return the workers of each version, and whether it is the default."""
        models = self._client.get("/v1/models").json()["data"]
        return {f"{one['name']}@{one['version']}": (one["workers"], one["default"]) for one in models}

    def done_by(self, phase: str) -> dict[str | None, Counter[str]]:
        """Return which models did the jobs of a phase, by the model that these named."""
        found: dict[str | None, Counter[str]] = {}
        for job_id, (of_phase, named) in self.jobs.items():
            if of_phase == phase:
                result = self._deployment.jobs.get(job_id).result
                assert result is not None
                done = SeparationResult.model_validate(result)
                found.setdefault(named, Counter())[done.model.id] += 1
        return found


def assert_done_once(deployment: Deployment, job_id: str) -> None:
    """Its record succeeded, in one event of all, and what is stored is of one execution."""
    job = deployment.jobs.get(job_id)
    assert job.status == "succeeded", job
    replay = RecordReplay(job)
    finished = [replay.apply(entry).is_finished for entry in read_all(deployment.redis, job_id)]
    assert finished == [False] * (len(finished) - 1) + [True]
    assert {key.split("/")[2] for key in deployment.output_keys(job)} == {job.execution}


@pytest.mark.soak
@pytest.mark.timeout(3600 if SOAK else 300)
def test_a_rolling_upgrade_and_a_rollback_under_load(
    deploy: Callable[..., Deployment], next_model: Path, figures: Figures
) -> None:
    deployment = deploy(auth="off")
    (port,) = free_ports(1)
    deployment.start_api(port)
    deployment.start_housekeeping()
    (old,) = deployment.start_workers(1)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
        client = Client(deployment, http)
        refusal = client.post(NEW)
        assert (refusal.status_code, refusal.json()["code"]) == (503, "model_unavailable")
        assert OLD in refusal.json()["detail"]
        client.create("before", None, OLD)

        (new,) = deployment.start_workers(1, model=next_model)
        eventually(lambda: client.versions().get(NEW, (0,))[0] == 1)
        client.create("both", None, OLD, NEW)
        deployment.stop(old)
        eventually(lambda: client.versions().get(NEW) == (1, True))
        assert OLD not in client.versions(), "only a worker that is gone had it"
        assert client.post(OLD).status_code == 503
        client.create("upgraded", None, NEW)

        for job_id, _ in named_jobs(client, NEW):
            eventually(lambda job_id=job_id: deployment.jobs.get(job_id).is_finished, PATIENCE)
        client.create("rolling back", None)
        (old,) = deployment.start_workers(1)
        deployment.stop(new)
        eventually(lambda: client.versions().get(OLD) == (1, True))
        assert client.post(NEW).status_code == 503
        client.create("rolled back", None, OLD)
        for job_id in client.jobs:
            eventually(lambda job_id=job_id: deployment.jobs.get(job_id).is_finished, PATIENCE)

    assert len(client.jobs) == 10 * JOBS_OF_A_KIND
    for job_id in client.jobs:
        assert_done_once(deployment, job_id)
    workers = {"before": "A", "both": "A, B; then A stops", "upgraded": "B"}
    workers |= {"rolling back": "B; then A starts, B stops", "rolled back": "A"}
    for phase, living in workers.items():
        for named, done in client.done_by(phase).items():
            figures.add("versions", phase, living, named or "none", str(done.total()), text_of(done))
            assert named is None or set(done) == {named}
    assert set(client.done_by("upgraded")[None]) == {NEW} and set(client.done_by("rolled back")[None]) == {OLD}


def named_jobs(client: Client, model: str) -> list[tuple[str, str | None]]:
    return [(job_id, named) for job_id, (_, named) in client.jobs.items() if named == model]


def text_of(done: Counter[str]) -> str:
    return ", ".join(f"{count} by {model}" for model, count in sorted(done.items()))
