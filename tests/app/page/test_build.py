"""The built files of the page, and what browsers let it do."""

import gzip
import hashlib
import json

from tests.app.conftest import Service
from tests.app.page.studio import (
    FILES,
    SOURCE,
    WEB,
)


def test_files_are_built_from_these_sources() -> None:
    """`make page` builds them; this comparison needs no Node."""
    digest = hashlib.sha256()
    paths = {path.relative_to(SOURCE).as_posix(): path for path in SOURCE.rglob("*") if path.is_file()}
    for name in sorted(name for name in paths if not name.startswith("node_modules/")):
        digest.update(f"{name}\0".encode() + paths[name].read_bytes())
    assert (FILES / "sources.sha256").read_text().strip() == digest.hexdigest(), "run `make page`"


def test_page_is_light() -> None:
    sent = [WEB / "index.html", FILES / "page.js", FILES / "page.css"]
    assert sum(len(gzip.compress(path.read_bytes())) for path in sent) < 100_000  # bytes; of 250,000 that are allowed
    tracked = [path for path in WEB.rglob("*") if path.is_file() and not path.is_relative_to(SOURCE / "node_modules")]
    assert sum(path.stat().st_size for path in tracked) < 1_000_000


def test_lock_file_names_no_registry() -> None:
    packages = json.loads((SOURCE / "package-lock.json").read_text())["packages"]
    assert packages and not any("resolved" in package for package in packages.values())


def test_content_security_policy_allows_only_this_origin(folder_service: Service) -> None:
    answer = folder_service.client.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    for path in sorted(FILES.rglob("*.*")):
        answer = folder_service.client.get(f"/page/{path.relative_to(FILES)}")
        assert (answer.status_code, answer.content) == (200, path.read_bytes())
    assert folder_service.client.get("/page/index.html").status_code == 404  # it would lack its policy
    for path in ("routes.py", "../errors.py"):
        assert (WEB / path).is_file()
        outside = f"/page/../{path}".replace("..", "%2e%2e")  # as it is, the client would resolve it
        assert folder_service.client.get(outside).status_code == 404
