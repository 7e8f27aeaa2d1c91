"""`docker/pin.sh`: every image that others build is pinned to the digest of its tag, and later to a newer one."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

REFERENCE = re.compile(r"^(?:FROM|\s*(?:- )?image:) +(\S+)", re.MULTILINE)
# Stands for the client and the registries behind it, which tests cannot reach.
DOCKER = """#!/bin/sh
test "$1 $2 $3 $4 $5" = "buildx imagetools inspect --format {{json .Manifest.Digest}}" || exit 64
grep "^$6 " "$DIGESTS" | cut -d ' ' -f 2 | grep .
"""


def digest(image: str, edition: str) -> str:
    return "sha256:" + hashlib.sha256(f"{image} {edition}".encode()).hexdigest()


def references(folder: Path) -> list[str]:
    """Return all images of the deployment's files."""
    files = [
        folder / "docker-compose.yml",
        *folder.glob("docker/Dockerfile.*"),
        *folder.glob("docker/kubernetes/*.yaml"),
    ]
    return [image for file in sorted(files) for image in REFERENCE.findall(file.read_text())]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a copy of the deployment's files, beside a `docker`."""
    shutil.copy(REPOSITORY / "docker-compose.yml", tmp_path)
    shutil.copytree(REPOSITORY / "docker", tmp_path / "docker")
    program = tmp_path / "bin" / "docker"
    program.parent.mkdir()
    program.write_text(DOCKER)
    program.chmod(0o755)
    return tmp_path


def pin(folder: Path, digests: dict[str, str]) -> subprocess.CompletedProcess[str]:
    table = folder / "digests"
    table.write_text("".join(f'{image} "{of_image}"\n' for image, of_image in digests.items()))
    environment = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "DIGESTS": str(table)}
    return subprocess.run(
        ["sh", folder / "docker" / "pin.sh"], env=environment, capture_output=True, text=True, timeout=60
    )


def test_images_are_pinned_to_the_digests_of_their_tags(folder: Path) -> None:
    before = references(folder)
    others = {image for image in before if not image.startswith("earmark-")}
    assert len(others) >= 6 and all(":" in image and "@" not in image for image in others)
    for edition in ("first", "later"):
        done = pin(folder, {image: digest(image, edition) for image in others})
        assert done.returncode == 0, done.stderr
        pinned = [f"{image}@{digest(image, edition)}" if image in others else image for image in before]
        assert references(folder) == pinned
    schema = [Path(sys.executable).with_name("check-jsonschema"), "--builtin-schema", "vendor.compose-spec"]
    subprocess.run([*schema, folder / "docker-compose.yml"], check=True, capture_output=True)


def test_an_image_without_a_digest_ends_the_pinning(folder: Path) -> None:
    before = references(folder)
    done = pin(folder, {})
    assert done.returncode != 0 and "no digest of chrislusf/seaweedfs" in done.stderr
    assert references(folder) == before
