"""`python -m app.demo`: start the embedded service, separate a bundled recording with a bundled example, and check the
result. The exit status is 0 only if SI-SDR improves by at least 3 dB and stem + residual equal the mixture exactly.
"""

import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import httpx
import numpy as np
import soundfile
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from app.demo.client import DemoFailed, download, separate, upload, wait_until_ready
from app.demo.picture import draw

RECORDINGS = Path(__file__).with_name("recordings")
MIXTURE, TARGET, EXAMPLE = (RECORDINGS / f"{name}.flac" for name in ("mixture", "target", "example"))
NAME = "birds"
LEAST_IMPROVEMENT_DB = 3.0
READY_SECONDS = 180.0
TIMEOUT_SECONDS = 60.0

console = Console()


def main(
    output: Annotated[Path, typer.Option(help="Folder for the stems and the spectrograms.")] = Path("demo-output"),
    url: Annotated[str | None, typer.Option(help="URL of a running service.  [default: start one]")] = None,
) -> None:
    """Separate the bundled recording over HTTP."""
    output.mkdir(parents=True, exist_ok=True)
    try:
        if url:
            with httpx.Client(base_url=url, timeout=TIMEOUT_SECONDS) as client:
                passed = _run(client, output, lambda: True)
        else:
            with tempfile.TemporaryDirectory(prefix="earmark-demo-") as home:
                passed = _run_with_service(Path(home), output)
    except (DemoFailed, httpx.HTTPError) as error:
        console.print(f"[red]{error}" + ("" if url else f" (log of the service: {output / 'service.log'})"))
        passed = False
    raise typer.Exit(0 if passed else 1)


def _run_with_service(home: Path, output: Path) -> bool:
    port = _free_port()
    # Without the proxy of the environment.
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=TIMEOUT_SECONDS, trust_env=False)
    command = [sys.executable, "-m", "app", "--embedded", "--port", str(port), "--home", str(home)]
    with client, (output / "service.log").open("wb") as log:
        service = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603  a fixed command
        try:
            return _run(client, output, lambda: service.poll() is None)
        finally:
            service.terminate()
            try:
                service.wait(40)
            except subprocess.TimeoutExpired:
                service.kill()
                service.wait()


def _run(client: httpx.Client, output: Path, is_running: Callable[[], bool]) -> bool:
    with console.status("starting the service: queue, worker, API"):
        wait_until_ready(client, is_running, READY_SECONDS)
    mixture, example = upload(client, MIXTURE), upload(client, EXAMPLE)
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task("queued", total=1.0)
        job = separate(
            client,
            mixture["id"],
            example["id"],
            NAME,
            lambda ratio, stage: bar.update(task, completed=ratio, description=stage),
        )
        bar.update(task, completed=1.0, description="done")
    paths = download(client, job, output)
    return _check(job, paths, output)


def _check(job: dict, paths: dict[str, Path], output: Path) -> bool:
    mixture, rate = soundfile.read(MIXTURE, dtype="int32", always_2d=True)
    stem, residual = (soundfile.read(paths[name], dtype="int32", always_2d=True)[0] for name in (NAME, "residual"))
    target = soundfile.read(TARGET, always_2d=True)[0].mean(1)
    recordings = {"mixture": mixture, f"stem: {NAME}": stem, "residual": residual}
    mono = {title: samples.mean(1) / 2**31 for title, samples in recordings.items()}
    before, after = si_sdr(mono["mixture"], target), si_sdr(mono[f"stem: {NAME}"], target)
    exact = job["gain"] == 1.0 and np.array_equal(mixture, stem + residual)
    picture = output / "spectrograms.png"
    draw(mono, rate, picture)

    table = Table("", "", show_header=False)
    table.add_row("SI-SDR of the target in the mixture", f"{before:.2f} dB")
    table.add_row("SI-SDR of the stem", f"{after:.2f} dB")
    table.add_row("improvement", f"[bold]{after - before:.2f} dB[/bold] (required: {LEAST_IMPROVEMENT_DB:g} dB)")
    table.add_row("stem + residual = mixture", "exactly" if exact else "[red]no")
    table.add_row("presence of the target", f"{job['targets'][0]['presence']:.2f}")
    table.add_row("real-time factor", f"{job['metrics']['real_time_factor']:.2f}")
    for path in [*paths.values(), picture]:
        table.add_row("written", str(path))
    console.print(table)
    return bool(exact and after - before >= LEAST_IMPROVEMENT_DB)


def si_sdr(estimate: np.ndarray, target: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al., arXiv 1811.02508)."""
    scaled = (estimate @ target) / (target @ target) * target
    return float(10 * np.log10((scaled @ scaled) / ((estimate - scaled) @ (estimate - scaled))))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


if __name__ == "__main__":
    typer.run(main)
