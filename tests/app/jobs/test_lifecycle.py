"""The life cycle of a job under any order of steps by workers, clients and housekeeping."""

import time

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from app.errors import RecordTooNew
from app.jobs import lifecycle
from app.jobs.lifecycle import TERMINAL, Job, JobError, TargetState

ATTEMPTS = 3
EXECUTIONS = st.sampled_from(["a", "b", "c", "d"])


def new_job() -> Job:
    return Job(
        id="sep_1",
        kind="separation",
        model="base",
        request={"mixture": 1},
        audio_ids=["aud_1"],
        targets=[TargetState(name="dog"), TargetState(name="cat")],
        created_at=1.0,
        changed_at=1.0,
        expires_at=9.0,
    )


class LifeCycle(RuleBasedStateMachine):
    """Applies random steps; a refused step must change nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.job = new_job()
        self.now = 1.0
        self.published_by: list[str] = []

    def apply(self, changed: Job | None) -> bool:
        before = self.job
        if changed is None:
            return False
        if before.is_finished:
            # A finished job stays as it is; only its output may expire.
            assert changed.model_copy(update={"expired": before.expired, "changed_at": before.changed_at}) == before
        self.job = changed
        return changed != before

    def tick(self) -> float:
        self.now += 1
        return self.now

    @rule(execution=EXECUTIONS)
    def claim(self, execution: str) -> None:
        before = self.job
        changed = lifecycle.claim(before, execution, self.tick(), ATTEMPTS)
        assert (changed is None) == before.is_finished
        self.apply(changed)
        if changed is not None and changed.status == "running":
            assert changed.execution == execution and changed.attempts <= ATTEMPTS

    @rule(execution=EXECUTIONS, ratio=st.floats(0, 2), stage=st.sampled_from(["decoding", "separating"]))
    def report_progress(self, execution: str, ratio: float, stage: str) -> None:
        before = self.job
        changed = lifecycle.report_progress(before, execution, ratio, stage, self.tick())
        assert (changed is not None) == (before.status == "running" and before.execution == execution)
        self.apply(changed)
        assert before.is_finished or before.progress.ratio <= self.job.progress.ratio <= 1

    @rule(execution=EXECUTIONS)
    def update_target(self, execution: str) -> None:
        state = TargetState(name="cat", status="failed", error=JobError(code="audio_silent", detail="Silent."))
        self.apply(lifecycle.update_target(self.job, execution, state, self.tick()))

    @rule(execution=EXECUTIONS)
    def publish(self, execution: str) -> None:
        targets = [TargetState(name="dog", status="succeeded"), TargetState(name="cat", status="succeeded")]
        if self.apply(lifecycle.publish(self.job, execution, targets, {"by": execution}, [], self.tick())):
            self.published_by.append(execution)

    @rule(execution=EXECUTIONS)
    def fail(self, execution: str) -> None:
        self.apply(lifecycle.fail(self.job, execution, JobError(code="internal", detail="."), self.tick()))

    @rule()
    def request_cancel(self) -> None:
        assert (lifecycle.request_cancel(self.job, self.now) is None) == self.job.is_finished
        self.apply(lifecycle.request_cancel(self.job, self.tick()))

    @rule(execution=EXECUTIONS)
    def confirm_cancel(self, execution: str) -> None:
        before = self.job
        assert (lifecycle.confirm_cancel(before, execution, self.now) is not None) == (
            before.execution == execution
            and (before.status == "canceled" or (before.status == "running" and before.cancel_requested_at is not None))
        )
        if self.apply(lifecycle.confirm_cancel(before, execution, self.tick())):
            assert before.execution == execution and before.cancel_requested_at is not None

    @rule()
    def requeue(self) -> None:
        before = self.job
        changed = lifecycle.requeue(before, self.tick(), ATTEMPTS)
        self.apply(changed)
        if changed is not None and not changed.is_finished:
            assert changed.attempts == before.attempts < ATTEMPTS

    @rule(execution=EXECUTIONS)
    def release(self, execution: str) -> None:
        before = self.job
        changed = lifecycle.requeue(before, self.tick(), ATTEMPTS, execution)
        self.apply(changed)
        if changed is not None and not changed.is_finished:
            assert changed.attempts == before.attempts - 1

    @rule()
    def expire(self) -> None:
        self.apply(lifecycle.expire(self.job, self.tick()))

    @invariant()
    def record_is_consistent(self) -> None:
        job = self.job
        assert job.is_finished == (job.status in TERMINAL) == (job.finished_at is not None)
        assert (job.result is not None) == (job.status == "succeeded")
        assert (job.error is not None) == (job.status == "failed")
        assert job.status != "running" or (job.execution is not None and job.started_at is not None)
        assert job.status != "queued" or (job.execution is None and job.started_at is None)
        assert 0 <= job.attempts <= ATTEMPTS
        assert len(self.published_by) <= 1
        assert not job.is_finished or all(target.status in TERMINAL for target in job.targets)
        assert not job.expired or job.is_finished
        assert lifecycle.parse(job.model_dump_json()) == job


TestLifeCycle = LifeCycle.TestCase
TestLifeCycle.settings = hypothesis_settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_a_newer_record_is_refused_clearly() -> None:
    document = new_job().model_copy(update={"schema_version": lifecycle.SCHEMA + 1}).model_dump_json()
    with pytest.raises(RecordTooNew, match=f"schema {lifecycle.SCHEMA + 1}; this release reads up to"):
        lifecycle.parse(document)


def test_an_older_record_is_upgraded_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "SCHEMA", 3)
    monkeypatch.setitem(lifecycle.UPGRADES, 1, lambda fields: fields | {"warnings": ["one"]})
    monkeypatch.setitem(lifecycle.UPGRADES, 2, lambda fields: fields | {"warnings": [*fields["warnings"], "two"]})
    job = lifecycle.parse(new_job().model_dump_json())
    assert (job.schema_version, job.warnings) == (3, ["one", "two"])


def test_fields_of_a_later_release_with_the_same_schema_are_ignored() -> None:
    assert lifecycle.parse(new_job().model_dump_json()[:-1] + ',"later": 1}') == new_job()


def test_small_progress_is_no_change() -> None:
    job = lifecycle.claim(new_job(), "a", time.time(), ATTEMPTS)
    assert job is not None
    job = lifecycle.report_progress(job, "a", 0.5, "separating", 2.0)
    assert job is not None
    assert lifecycle.report_progress(job, "a", 0.505, "separating", 3.0) == job
    assert lifecycle.report_progress(job, "a", 0.2, "separating", 3.0) == job
    later = lifecycle.report_progress(job, "a", 0.505, "encoding", 3.0)
    assert later is not None and later.progress.stage == "encoding"
