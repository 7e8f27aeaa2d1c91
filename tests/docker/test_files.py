"""Deployment files, checked with schemas, linters and the programs that read them."""

import asyncio
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kubernetes_validate
import pytest
import yaml
from redis import Redis

from app.jobs import metrics as job_metrics
from app.jobs.repository import JobRepository
from app.main import VERSION, create_app
from app.metrics import PROCESS
from app.model_registry.registry import ModelRegistry
from app.settings import Settings
from app.tables.shared_things import shared_things
from tests import programs
from tests.app.conftest import MODEL
from tests.conftest import REPOSITORY
from tests.end_to_end.topology import write_proxy
from worker.metrics import GpuMetrics

DOCKER = REPOSITORY / "docker"
KUBERNETES = "1.34"  # release of the schemas that validate the manifests
NAME = re.compile(r"\bearmark_[a-z0-9_]+\b")
JOB_BYTES, UPLOAD_BYTES = 20_000, 1_000  # that a record takes in Redis (docker/capacity.md)
# Kinds without a built-in schema; their fields are checked below.
CUSTOM_KINDS = {"ScaledObject", "Kustomization"}


def run(*command: str | Path, cwd: Path = REPOSITORY) -> str:
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def venv_program(name: str) -> Path:
    """Return the path of a program that a Python package installs."""
    return Path(sys.executable).with_name(name)


def manifests() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted((DOCKER / "kubernetes").glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            yield path.name, document


def pods() -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{path}: {one['metadata']['name']}", one["spec"]["template"]["spec"])
        for path, one in manifests()
        if "template" in one.get("spec", {})
    ]


@pytest.fixture(scope="session")
def compose() -> dict[str, Any]:
    return yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())


# Compose and images


def test_compose_conforms_to_its_specification() -> None:
    run(venv_program("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", "docker-compose.yml")


def test_compose_has_no_severe_weakness(tmp_path: Path) -> None:
    """In a folder of its own: mounts of a checkout in somebody's home are a weakness of that place."""
    shutil.copy(REPOSITORY / "docker-compose.yml", tmp_path)
    run(venv_program("compose-lint"), "--fail-on", "high", "docker-compose.yml", cwd=tmp_path)


def test_every_service_is_confined(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "pids_limit" in service and "mem_limit" in service, name
        assert "healthcheck" in service or "build" in service, name
    published = {port for service in compose["services"].values() for port in service.get("ports", [])}
    assert {port for port in published if not port.startswith("127.0.0.1:")} == {"${EARMARK_PUBLIC_PORT:-8080}:8080"}


def test_services_that_start_decoders_have_an_init_that_reaps_orphans(compose: dict[str, Any]) -> None:
    """The programs themselves reap only the processes that they have started."""
    with_init = {name for name, service in compose["services"].items() if service.get("init")}
    assert with_init == {"api", "worker", "worker-gpu"}


def test_passwords_are_not_in_the_files(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for name, value in (service.get("environment") or {}).items():
            if re.search("PASSWORD|SECRET|ACCESS_KEY|REDIS_URL", name):
                assert re.search(r"\$\{EARMARK_[A-Z_]+:\?", value), name


@pytest.mark.parametrize("name", ["Dockerfile.api", "Dockerfile.worker"])
def test_images_are_built_in_stages_and_run_unprivileged(name: str) -> None:
    run(venv_program("hadolint"), DOCKER / name)
    text = (DOCKER / name).read_text()
    stages = re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]
    assert len(stages) == 2 and re.search(r"^USER 10001$", stages[-1], re.MULTILINE)


def test_every_variable_is_a_setting(compose: dict[str, Any]) -> None:
    of_proxy = set(compose["services"]["proxy"]["environment"])
    assert of_proxy == set(re.findall("EARMARK_[A-Z_]+", (DOCKER / "proxy.sh").read_text()))
    named = {
        name
        for service in compose["services"].values()
        for name in service.get("environment") or {}
        if name.startswith("EARMARK_")
    } - of_proxy
    for path in [*DOCKER.glob("Dockerfile.*"), DOCKER / "kubernetes" / "settings.yaml"]:
        named |= set(re.findall(r"^\s*(?:ENV )?(EARMARK_[A-Z_]+)[=:]", path.read_text(), re.MULTILINE))
    assert named - {f"EARMARK_{name.upper()}" for name in Settings.model_fields} == set()


def test_the_release_is_the_same_everywhere(compose: dict[str, Any]) -> None:
    release = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    images = {service["image"] for service in compose["services"].values() if service["image"].startswith("earmark-")}
    assert images == {f"earmark-{name}:${{EARMARK_VERSION:-{release}}}" for name in ("api", "worker")}
    kustomization = yaml.safe_load((DOCKER / "kubernetes" / "kustomization.yaml").read_text())
    assert {image["name"]: image["newTag"] for image in kustomization["images"]} == {
        "earmark-api": release,
        "earmark-worker": release,
    }
    assert release == VERSION


# Kubernetes


def test_manifests_conform_to_kubernetes_schemas() -> None:
    checked = 0
    for path, document in manifests():
        if document["kind"] not in CUSTOM_KINDS:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
            checked += 1
        assert document["kind"] != "Kustomization" or {
            entry.name for entry in (DOCKER / "kubernetes").glob("*.yaml")
        } == {*document["resources"], path}
    assert checked >= 15


def test_an_invalid_manifest_is_detected() -> None:
    invalid = next(manifest for _, manifest in manifests() if manifest["kind"] == "Deployment")
    invalid["spec"]["replica"] = 2
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(invalid, KUBERNETES, strict=True)


def test_every_pod_is_confined_and_probed() -> None:
    assert len(pods()) == 4
    for name, pod in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["enableServiceLinks"] is False, f"{name}: variables of services look like settings"
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert "livenessProbe" in container and "memory" in container["resources"]["limits"], name
            assert {"readinessProbe", "startupProbe"} & container.keys(), name


def test_apis_and_workers_have_a_disruption_budget() -> None:
    budgets = {one["metadata"]["name"] for _, one in manifests() if one["kind"] == "PodDisruptionBudget"}
    assert budgets == {"api", "worker"}


def test_workers_scale_from_zero_on_waiting_and_running_jobs() -> None:
    [scaling] = [one for _, one in manifests() if one["kind"] == "ScaledObject"]
    assert scaling["spec"]["minReplicaCount"] == 0
    [trigger] = scaling["spec"]["triggers"]
    assert set(NAME.findall(trigger["metadata"]["query"])) == {"earmark_jobs_waiting", "earmark_jobs_running"}
    [worker] = [one for _, one in manifests() if one["kind"] == "Deployment" and one["metadata"]["name"] == "worker"]
    assert scaling["spec"]["scaleTargetRef"] == {"name": "worker"}
    assert "replicas" not in worker["spec"]
    pod = worker["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    hand_over_after = float(pod["containers"][0]["command"][-1])
    assert pod["terminationGracePeriodSeconds"] >= hand_over_after + 20


# Redis


def test_the_limits_of_redis_agree_and_one_key_leaves_room_for_others(compose: dict[str, Any]) -> None:
    queue = compose["services"]["queue"]
    [stateful] = [one for _, one in manifests() if one["kind"] == "StatefulSet"]
    container = stateful["spec"]["template"]["spec"]["containers"][0]
    limits = []
    for command, memory in (
        (queue["command"], queue["mem_limit"].removesuffix("g")),
        (container["args"], container["resources"]["limits"]["memory"].removesuffix("Gi")),
    ):
        [gigabytes] = re.findall(r"--maxmemory (\d+)gb", " ".join(command))
        assert "--maxmemory-policy noeviction" in " ".join(command), "evicted jobs are lost jobs"
        assert int(memory) >= 2 * int(gigabytes), "a rewrite of the append-only file copies what changes meanwhile"
        limits.append(int(gigabytes) << 30)
    assert limits[0] == limits[1]
    settings = Settings()
    of_one_key = settings.kept_jobs * JOB_BYTES + settings.kept_uploads * UPLOAD_BYTES + settings.idempotency_bytes
    assert of_one_key < 0.6 * settings.redis_share * limits[0]


# The proxy, Prometheus, Grafana


@pytest.mark.parametrize(
    ("trusted", "accepted"), [("", True), ("192.0.2.1,2001:db8::/32", True), ("192.0.2.0/40", False)]
)
def test_nginx_accepts_its_configuration(
    program: Callable[[str], Path], tmp_path: Path, trusted: str, accepted: bool
) -> None:
    program("nginx")
    command = write_proxy(tmp_path / "nginx", 8080, ["127.0.0.1:1"], "127.0.0.1:2")
    environment = programs.environment() | {"EARMARK_TRUSTED_PROXIES": trusted}
    done = subprocess.run([*command, "-t"], env=environment, capture_output=True, text=True, timeout=20)
    assert ("test is successful" in done.stderr) == (done.returncode == 0) == accepted, done.stderr
    assert accepted or trusted in done.stderr
    upstreams = (tmp_path / "nginx" / "upstreams.conf").read_text()
    compose = (DOCKER / "nginx.upstreams.conf").read_text()
    assert re.findall(r"upstream (\w+)", compose) == re.findall(r"upstream (\w+)", upstreams)


def test_prometheus_accepts_its_configuration_and_rules(program: Callable[[str], Path]) -> None:
    run(program("promtool"), "check", "config", "prometheus.yml", cwd=DOCKER)


def test_each_alert_fires_in_one_case_and_not_in_another(program: Callable[[str], Path]) -> None:
    run(program("promtool"), "test", "rules", "alerts.test.yml", cwd=DOCKER)
    rules = {
        rule["alert"]
        for group in yaml.safe_load((DOCKER / "alerts.yml").read_text())["groups"]
        for rule in group["rules"]
    }
    tests = yaml.safe_load((DOCKER / "alerts.test.yml").read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == rules, "each fires in a case"
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == rules, "and does not fire in another"


# As a Prometheus labels the samples of annotated pods, and of pods that an operator's PodMonitor selects.
SCRAPES = {
    "annotated pods": 'job="kubernetes-pods", namespace="earmark", pod="{pod}", app="earmark", node="n1"',
    "PodMonitor": 'job="earmark/api", namespace="earmark", pod="{pod}", container="api", endpoint="metrics"',
}


@pytest.mark.parametrize("scrape", SCRAPES)
def test_alerts_do_not_depend_on_the_labels_of_a_scrape(
    program: Callable[[str], Path], tmp_path: Path, scrape: str
) -> None:
    """The same cases, with the labels of Kubernetes on each sample: none fires for want of a label of compose."""
    document = yaml.load((DOCKER / "alerts.test.yml").read_text(), yaml.BaseLoader)  # `0x10` is no number
    for test in document["tests"]:
        for series in test["input_series"]:
            name, _, labels = series["series"].removesuffix("}").partition("{")
            instance = re.search(r'instance="(\w+)"', labels)
            pod = SCRAPES[scrape].format(pod=f"pod-{instance[1] if instance else 0}")
            series["series"] = f"{name}{{{labels}, {pod}}}" if labels else f"{name}{{{pod}}}"
    (tmp_path / "alerts.yml").write_text((DOCKER / "alerts.yml").read_text())
    (tmp_path / "alerts.test.yml").write_text(yaml.safe_dump(document))
    run(program("promtool"), "test", "rules", "alerts.test.yml", cwd=tmp_path)


def fake_nvml() -> SimpleNamespace:
    """Return a substitute for pynvml, for machines without a GPU."""
    return SimpleNamespace(
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetMemoryInfo=lambda gpu: SimpleNamespace(used=3 << 30, total=80 << 30),
        nvmlDeviceGetUtilizationRates=lambda gpu: SimpleNamespace(gpu=25),
    )


@pytest.fixture
def sample_names(redis: Redis, tmp_path: Path) -> dict[str, set[str]]:
    """Return the names of the samples that the front end and a worker export, with their labels."""
    assert job_metrics  # importing it registers its metrics in PROCESS
    port = redis.connection_pool.connection_kwargs["port"]
    settings = Settings(home=tmp_path, redis_url=f"redis://127.0.0.1:{port}/0")
    ModelRegistry(redis, settings).announce(MODEL, "worker-1")
    assert JobRepository(redis, settings).fair_queue.waiting_count("base") == 0
    app = create_app(settings)
    families = [*app.state.deps.metrics.registry.collect(), *GpuMetrics(fake_nvml(), "GPU-1").collect()]
    asyncio.run(app.state.deps.close())
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}
    return {f"{family.name}{suffix}": set() for family in families for suffix in suffixes[family.type]}


def test_every_query_uses_existing_metrics(sample_names: dict[str, set[str]]) -> None:
    dashboard = json.loads((DOCKER / "grafana" / "dashboards" / "earmark.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    assert len(queries) > 30 and all(NAME.search(query) for query in queries)
    alerts = (DOCKER / "alerts.yml").read_text()
    scaling = (DOCKER / "kubernetes" / "scaling.yaml").read_text()
    named = {name for text in (*queries, alerts, scaling) for name in NAME.findall(text)}
    assert named - sample_names.keys() == set()


def test_every_metric_is_on_the_dashboard(sample_names: dict[str, set[str]]) -> None:
    dashboard = (DOCKER / "grafana" / "dashboards" / "earmark.json").read_text()
    families = {re.sub("_(total|bucket|sum|count)$", "", name) for name in sample_names}
    shown = {re.sub("_(total|bucket|sum|count)$", "", name) for name in NAME.findall(dashboard)}
    # Of the process itself (CPU, files) the dashboard shows the memory.
    assert {name for name in families - shown if not name.startswith("earmark_process_")} == set()


def test_the_manual_names_all_metrics_and_no_others(sample_names: dict[str, set[str]]) -> None:
    manual = "\n".join(path.read_text() for path in sorted(DOCKER.glob("*.md")))
    families = {re.sub("_(total|bucket|sum|count)$", "", name) for name in sample_names}
    named = {re.sub("_(total|bucket|sum|count)$", "", name) for name in NAME.findall(manual)}
    assert {name for name in families ^ named if not name.startswith("earmark_process_")} == set()


def test_all_that_clients_share_has_settings_a_metric_and_an_alert(sample_names: dict[str, set[str]]) -> None:
    alerts = re.findall(r"alert: (\w+)", (DOCKER / "alerts.yml").read_text())
    things = shared_things(Settings.model_construct())
    assert len({thing.what for thing in things}) == len(things)
    metrics = {name.removesuffix("_count") for name in sample_names}
    for thing in things:
        assert set(thing.settings) <= Settings.model_fields.keys(), thing.what
        assert set(NAME.findall(thing.metric)) <= metrics and thing.metric, thing.what
        assert thing.alert in alerts, thing.what
    [proxy] = [thing for thing in things if thing.what.startswith("connections of an address")]
    nginx = (DOCKER / "nginx.conf").read_text()
    assert proxy.share == re.search(r"limit_conn clients (\d+);", nginx)[1] + " of an address"  # type: ignore[index]
    workers = int(re.search(r"worker_connections (\d+);", nginx)[1])  # type: ignore[index]
    assert proxy.total.startswith(f"{workers:,}")


def test_metric_names_follow_the_prometheus_guide(
    program: Callable[[str], Path], sample_names: dict[str, set[str]]
) -> None:
    promtool = program("promtool")
    from prometheus_client import generate_latest

    done = subprocess.run(
        [promtool, "check", "metrics"], input=generate_latest(PROCESS), capture_output=True, timeout=20
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_gpu_metrics() -> None:
    samples = {family.name: family.samples[0] for family in GpuMetrics(fake_nvml(), "GPU-1").collect()}
    assert {name: sample.value for name, sample in samples.items()} == {
        "earmark_gpu_memory_used_bytes": 3 << 30,
        "earmark_gpu_memory_total_bytes": 80 << 30,
        "earmark_gpu_use_ratio": 0.25,
    }
    assert all(sample.labels == {"gpu": "GPU-1"} for sample in samples.values())
