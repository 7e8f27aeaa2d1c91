"""Who may connect to whom, by the networks of compose and the policies of Kubernetes: only what must leads out."""

from ipaddress import ip_address, ip_network
from itertools import permutations
from typing import Any

import pytest
import yaml

from tests.conftest import REPOSITORY
from tests.docker.test_files import manifests

POLICIES: list[dict[str, Any]] = [one["spec"] for _, one in manifests() if one["kind"] == "NetworkPolicy"]
COMPOSE = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())
BRIDGE = "com.docker.network.bridge.enable_ip_masquerade"
# Which containers of compose have a network in common, besides those of programs and their backends.
PROGRAMS = {"api", "housekeeping", "worker", "worker-gpu"}
NEIGHBOURS = {
    ("proxy", "api"),
    ("proxy", "store"),
    ("prometheus", "grafana"),
    *((program, backend) for program in PROGRAMS for backend in ("queue", "store", "prometheus", "grafana")),
    *(pair for pair in permutations(PROGRAMS, 2)),
    *(("proxy", program) for program in PROGRAMS),  # through the store's network, where the store listens
}

STORE, PUBLIC, PUBLIC6 = "203.0.113.7", "93.184.215.14", "2606:2800:21f:cb07::1"
PRIVATE = ["10.1.2.3", "172.20.0.9", "192.168.1.1", "169.254.169.254", "127.0.0.1", "100.64.0.1", "fd00::1", "fe80::1"]
APPS = ["api", "housekeeping", "worker", "queue"]
PEERS = {"ingress": "from", "egress": "to"}
DNS = ({"kubernetes.io/metadata.name": "kube-system"}, {"k8s-app": "kube-dns"})


# Compose


def leads_out(network: str) -> bool:
    """Return whether containers reach the outside through a network of compose."""
    options = COMPOSE["networks"][network] or {}
    return not options.get("internal") and options.get("driver_opts", {}).get(BRIDGE) != "false"


def test_only_programs_that_request_urls_of_clients_have_a_way_out() -> None:
    out = {
        name
        for name, service in COMPOSE["services"].items()
        if any(leads_out(network) for network in service["networks"])
    }
    assert out == {"api", "housekeeping"}
    assert {name for name, service in COMPOSE["services"].items() if service.get("dns") != ["127.0.0.1"]} == out


def test_containers_share_networks_only_with_those_they_talk_to() -> None:
    networks = {name: set(service["networks"]) for name, service in COMPOSE["services"].items()}
    shared = {frozenset(pair) for pair in permutations(networks, 2) if networks[pair[0]] & networks[pair[1]]}
    assert shared == {frozenset(pair) for pair in NEIGHBOURS}
    assert {name for name in networks if "queue" in networks[name]} == {"queue", *PROGRAMS}


def test_ports_are_published_where_docker_can() -> None:
    """A container that is on internal networks only publishes none."""
    for name, service in COMPOSE["services"].items():
        is_reachable = any(not (COMPOSE["networks"][network] or {}).get("internal") for network in service["networks"])
        assert is_reachable or "ports" not in service, name


# Kubernetes


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Return whether a label selector matches (Kubernetes API, LabelSelector)."""
    expressions = selector.get("matchExpressions", [])
    assert all(expression["operator"] == "In" for expression in expressions)
    return all(labels.get(name) == value for name, value in selector.get("matchLabels", {}).items()) and all(
        labels.get(expression["key"]) in expression["values"] for expression in expressions
    )


def is_peer(peer: dict[str, Any], address: str | None, namespace: dict[str, str], labels: dict[str, str]) -> bool:
    """Return whether a peer of a rule is an address, or a pod with labels; an empty namespace: that of the policy."""
    if block := peer.get("ipBlock"):
        return (
            address is not None
            and ip_address(address) in ip_network(block["cidr"])
            and not any(ip_address(address) in ip_network(part) for part in block.get("except", []))
        )
    of_namespace = peer.get("namespaceSelector")
    is_there = selects(of_namespace, namespace) and bool(namespace) if of_namespace is not None else not namespace
    return address is None and is_there and selects(peer.get("podSelector", {}), labels)


def may(
    direction: str,
    app: str,
    port: int,
    *,
    address: str | None = None,
    namespace: dict[str, str] | None = None,
    labels: dict[str, str] | None = None,
    protocol: str = "TCP",
) -> bool:
    """Return whether the pods of an app may connect to a peer (`egress`), or a peer to them (`ingress`)."""
    applied = [
        policy
        for policy in POLICIES
        if selects(policy["podSelector"], {"app": app}) and direction.capitalize() in policy["policyTypes"]
    ]
    rules = [rule for policy in applied for rule in policy.get(direction, [])]
    return not applied or any(
        any(is_peer(peer, address, namespace or {}, labels or {}) for peer in rule[PEERS[direction]])
        and any(allowed["port"] == port and allowed.get("protocol", "TCP") == protocol for allowed in rule["ports"])
        for rule in rules
    )


@pytest.mark.parametrize("app", APPS)
def test_pods_reach_what_they_need_and_nothing_else(app: str) -> None:
    namespace, labels = DNS
    has_backends, has_outside = app != "queue", app in ("api", "housekeeping")
    for protocol in ("UDP", "TCP"):
        assert may("egress", app, 53, namespace=namespace, labels=labels, protocol=protocol) is has_backends
    assert may("egress", app, 6379, labels={"app": "queue"}) is has_backends
    assert may("egress", app, 443, address=STORE) is has_backends
    for address in (PUBLIC, PUBLIC6):
        for port in (80, 443):
            assert may("egress", app, port, address=address) is has_outside, (address, port)
        for port in (22, 25, 53, 6379, 8333):
            assert not may("egress", app, port, address=address), (address, port)
    for address in PRIVATE:
        for port in (80, 443, 6443, 10250):
            assert not may("egress", app, port, address=address), (address, port)
    for other in APPS:
        for port in (8000, 9464):
            assert not may("egress", app, port, labels={"app": other}), (other, port)
    assert not may("egress", app, 443, namespace={"kubernetes.io/metadata.name": "default"}, labels={"app": "queue"})


def test_pods_accept_what_they_serve_and_nothing_else() -> None:
    allowed = {
        ("api", 8000, "ingress-nginx"),
        *((app, 9464, "monitoring") for app in ("api", "housekeeping", "worker")),
    }
    for app in APPS:
        for port in (22, 6379, 8000, 9464):
            for name in ("ingress-nginx", "monitoring", "default", "kube-system"):
                namespace = {"kubernetes.io/metadata.name": name}
                assert may("ingress", app, port, namespace=namespace) == ((app, port, name) in allowed), (app, port)
            for other in APPS:
                expected = (app, port) == ("queue", 6379) and other != "queue"
                assert may("ingress", app, port, labels={"app": other}) == expected, (app, port, other)
            assert not may("ingress", app, port, address=PUBLIC)
