"""`python -m models bench`: its sections, and what surrounds a measured program."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from models import checkpoints
from models.bench import own_programs, precision_curve, separations, surroundings
from models.bench.commands import bench
from models.compute.precision import Arithmetic
from models.networks import htsat
from models.networks.unet import HyperParameters, UNet
from models.queries.query import PAPER_RULES
from tests.models.test_networks import SMALL_EAR

APP = typer.Typer()
APP.command()(bench)


def test_the_machine_is_measured_as_json_and_as_a_file(tmp_path: Path) -> None:
    done = CliRunner().invoke(APP, ["machine", "--json", "-o", str(tmp_path / "speed.json")])
    assert done.exit_code == 0, done.output
    results = json.loads(done.output)
    assert results == json.loads((tmp_path / "speed.json").read_text())
    (row,) = results["machine"]
    assert all(row[name] > 0 for name in ("threads", "float32_gflops", "bfloat16_gflops", "copy_gb_per_second"))


def test_an_unknown_section_is_refused_with_those_that_there_are() -> None:
    done = CliRunner().invoke(APP, ["speed"])
    assert done.exit_code == 2
    assert "separations" in done.output


def test_separations_are_compared_with_the_exact_one() -> None:
    rows = list(separations.measure_all(["base"], [2.0], 1, "cpu"))
    assert [row["way"] for row in rows] == ["exact", "engine", "networks"]
    assert all(row["took"] > 0 and row["peak_mib"] > 100 for row in rows)
    exact, engine, networks = rows
    assert exact["snr"] is None
    assert engine["snr"] >= 30
    assert networks["snr"] > 10


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ("kill -KILL $$", "its process was killed, as the kernel does when memory runs out"),
        ("kill -TERM $$", "its process ended by SIGTERM"),
        ("exit 137", "its process ended with status 137 and said nothing"),
        ("echo 'much' >&2; echo 'error: why' >&2; exit 1", "error: why"),
    ],
)
def test_a_measured_program_that_fails_is_told_in_one_line(end: str, reason: str) -> None:
    with pytest.raises(ValueError, match="measuring") as raised:
        own_programs.run(["bench"], "base", prefix=["sh", "-c", end])
    assert str(raised.value) == f"measuring base failed: {reason}"


def test_a_quota_holds() -> None:
    program = (
        "import time; end = time.perf_counter() + 1\nwhile time.perf_counter() < end: pass\nprint(time.process_time())"
    )
    try:
        with surroundings.quota(0.2) as prefix:
            done = subprocess.run([*prefix, sys.executable, "-c", program], capture_output=True, text=True, check=True)
    except surroundings.QuotaUnavailable as unavailable:
        pytest.skip(str(unavailable))
    assert float(done.stdout) < 0.6


def test_busy_processes_end_with_the_measurement() -> None:
    with surroundings.busy(1):
        pass


def test_layers_in_float32_trade_speed_for_a_higher_ratio(tmp_path: Path) -> None:
    torch.manual_seed(0)
    detector = htsat.HTSAT(SMALL_EAR)
    separator = UNet(HyperParameters(query_size=16, channels=(4, 4, 8, 8, 8, 8)))
    names = {"name": "small", "version": "1", "preset": "paper", "query": vars(PAPER_RULES)}
    config = names | {"detector": asdict(detector.hyper), "separator": asdict(separator.hyper)}
    checkpoints.save(checkpoints.Bundle("small", "1", detector.eval(), separator.eval(), config), tmp_path)
    assert precision_curve.is_paper(str(tmp_path))
    assert not precision_curve.is_paper("base")
    # Without bfloat16, a network can only be packed in float32.
    points = ["exact", "authors", "everything", *(["nothing"] if Arithmetic.of("cpu").bfloat16 else [])]
    rows = [precision_curve.measure(str(tmp_path), json.dumps([point, 10.0]), 2.0, tmp_path) for point in points]
    exact, authors, everything, *nothing = (row["snr"] for row in rows)
    assert exact is None
    assert authors > 10
    assert everything > 90
    assert all(30 < ratio < everything for ratio in nothing)
    assert all(row["cpu"] > 0 and row["peak_mib"] > 100 for row in rows)
