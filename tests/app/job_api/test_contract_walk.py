"""schemathesis walks the service by its own document: what is sent is made up, what comes back must be as promised.

A few examples a call under `make test`, hundreds under `make soak`.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from redis import Redis
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ensure_resource_availability,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    use_after_free,
)

from app.jobs.kinds import KINDS
from tests.app.conftest import LIMITS, Service, empty, serve, wav
from tests.app.job_api.test_kinds import create
from tests.conftest import REPOSITORY, S3Server

SOAK = bool(os.environ.get("EARMARK_SOAK"))
OPERATIONS = [
    (method, path)
    for path, calls in json.loads((REPOSITORY / "openapi.json").read_text())["paths"].items()
    for method in calls
]


def require_no_server_error(context: Any, response: Any, case: Any) -> None:
    """Require that no response is 500 or above, except for unknown models, which the document calls unavailable."""
    if response.status_code >= 500:
        assert response.json()["code"] == "model_unavailable", response.text


CHECKS = [
    require_no_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
STATEFUL = [*CHECKS, use_after_free, ensure_resource_availability]
# Half of all files are recordings, so that the walk gets past the door.
schemathesis.serializer.alias("application/offset+octet-stream", "application/octet-stream")
schemathesis.openapi.format("binary", st.one_of(st.just(wav(0.2)), st.binary(max_size=200)))


def examples(few: int, many: int) -> hypothesis_settings:
    return hypothesis_settings(
        max_examples=many if SOAK else few,
        stateful_step_count=6,
        deadline=None,
        database=None,
        derandomize=not SOAK,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=tuple(HealthCheck),  # pyright: ignore[reportArgumentType]
    )


@pytest.fixture(scope="module")
def _walked_service(valkey: Any, seaweed: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service on S3, for presigned uploads, with short timeouts."""
    folder = tmp_path_factory.mktemp("walked")
    choices = {**LIMITS, "longest_wait": 0, "queue_jobs": 100_000}
    yield from serve(seaweed.settings("walked", home=folder, redis_url=valkey.connection_url, **choices), folder)


@pytest.fixture
def walked_service(_walked_service: Service, redis: Redis) -> Service:
    return empty(_walked_service)


def contract(service: Service) -> Any:
    document = service.client.get("/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=str(service.client.base_url), request_timeout=30.0)
    return schema


@pytest.mark.soak
@pytest.mark.timeout(1800 if SOAK else 300)
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_every_operation_conforms_to_the_document(walked_service: Service, method: str, path: str) -> None:
    operation = contract(walked_service)[path][method]

    @examples(4, 300)
    @given(case=operation.as_strategy())
    def keeps(case: Any) -> None:
        case.call_and_validate(checks=CHECKS)

    keeps()


@pytest.mark.soak
@pytest.mark.timeout(3600 if SOAK else 300)
def test_walks_along_links_conform_to_the_document(walked_service: Service) -> None:
    schema = contract(walked_service)
    # A stream of events ends with its job, and there is no worker.
    calls = schema.exclude(path_regex="/events$")
    answered = walk(walked_service, calls) + walk(walked_service, calls.exclude(method="DELETE"))
    print(dict(answered))
    # Requests succeeded, and links led back to what they had created, in walks that do not delete it before.
    came_back = sum(count for call, count in answered.items() if call.endswith("_id} 200"))
    assert answered["POST /v1/audio 201"] and came_back


def walk(walked_service: Service, calls: Any) -> Counter[str]:
    """Walk along the links of these calls; return how often each call had which status."""
    answered: Counter[str] = Counter()

    class Walk(calls.as_state_machine()):
        def setup(self) -> None:
            """Begin every walk with one job of each kind, so that links of lists lead somewhere."""
            walked_service.deps.redis.flushall()
            empty(walked_service)
            for kind in KINDS.values():
                assert create(walked_service, kind).status_code == 202

        def get_call_kwargs(self, case: Any) -> dict[str, Any]:
            return {"allow_redirects": False}

        def validate_response(self, response: Any, case: Any, additional_checks: Any = (), **others: Any) -> None:
            answered[f"{case.operation.label} {response.status_code}"] += 1
            case.validate_response(response, checks=STATEFUL)

    Walk.run(settings=examples(20, 1000))
    return answered


def test_the_document_links_every_created_resource(walked_service: Service, tmp_path: Path) -> None:
    document = walked_service.client.get("/openapi.json").json()
    operations = {operation["operationId"] for calls in document["paths"].values() for operation in calls.values()}
    linked = set()
    for calls in document["paths"].values():
        for operation in calls.values():
            for answer in operation["responses"].values():
                for name, link in answer.get("links", {}).items():
                    assert name == link["operationId"] and name in operations
                    linked.add(name)
    for path, calls in document["paths"].items():
        for operation in calls.values():
            assert operation["operationId"] in linked or "{" not in path
