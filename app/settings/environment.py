"""Environment variables that begin like settings: which are some, which are misspelled, and which are known others."""

import re
from collections.abc import Iterable, Mapping

PREFIX = "EARMARK_"
# Variables of the compose file, the Makefile and examples, which programs do not read.
OTHERS = frozenset(
    {
        "EARMARK_GRAFANA_PASSWORD",
        "EARMARK_KEY",
        "EARMARK_PUBLIC_PORT",
        "EARMARK_PUBLIC_URL",
        "EARMARK_REDIS_PASSWORD",
        "EARMARK_SOAK",
        "EARMARK_SOAK_HOURS",
        "EARMARK_SOAK_JOBS",
        "EARMARK_SOAK_UPLOADS",
        "EARMARK_TRUSTED_PROXIES",
        "EARMARK_URL",
        "EARMARK_VERSION",
        "EARMARK_WORKER_MEMORY",
    }
)
NEAR = 2  # edits: letters replaced, left out or added
# Kubernetes sets these for every service of a namespace, unless a pod has `enableServiceLinks: false`: for one named
# `earmark` also EARMARK_PORT=tcp://10.0.0.1:8000.
_SERVICE_LINK = re.compile(r"\w+_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://.+")


def is_service_link(name: str, value: object) -> bool:
    """Whether a variable, with its name in any case, is one that Kubernetes sets for a service."""
    upper = name.upper()
    is_address = upper.endswith("PORT") and isinstance(value, str) and _SERVICE_ADDRESS.fullmatch(value)
    return bool(is_address or _SERVICE_LINK.fullmatch(upper))


def judge(environment: Mapping[str, str], settings: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Return the misspelled variables, each with the setting that it resembles, and the unknown ones.

    settings: names of the settings, without prefix, in lower case.
    """
    known = {f"{PREFIX}{name.upper()}" for name in settings}
    misspelled, unknown = {}, []
    for name, value in sorted(environment.items()):
        upper = name.upper()
        if not upper.startswith(PREFIX) or upper in known | OTHERS or is_service_link(upper, value):
            continue
        nearest = min(known, key=lambda setting: (distance(upper, setting), setting))
        if distance(upper, nearest) <= NEAR:
            misspelled[name] = nearest
        else:
            unknown.append(name)
    return misspelled, unknown


def distance(one: str, other: str) -> int:
    """Return how many letters must be replaced, left out or added to make one text of the other (Levenshtein)."""
    row = list(range(len(other) + 1))
    for line, letter in enumerate(one, start=1):
        before, row = row, [line]
        for column, another in enumerate(other, start=1):
            row.append(min(before[column] + 1, row[-1] + 1, before[column - 1] + (letter != another)))
    return row[-1]
