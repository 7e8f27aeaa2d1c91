"""Checkpoints: bundles in folders come back as they were saved, and damaged ones are refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models import checkpoints
from models.__main__ import main
from models.errors import CheckpointInvalid
from models.networks.htsat import HTSAT, HyperParameters
from models.networks.unet import HyperParameters as UNetHyperParameters
from models.networks.unet import UNet
from models.queries.plda import PLDAPrior

SMALL_EAR = HyperParameters(
    bands=32, frames=256, runs=2, patch=(2, 2), channels=8, depths=(2, 2), heads=(2, 4), window=4, classes=5
)
SMALL_UNET = UNetHyperParameters(fft_size=256, hop=64, query_size=16, channels=(4, 8))


@pytest.fixture
def bundle() -> checkpoints.Bundle:
    torch.manual_seed(0)
    config = {"preset": "paper", "detector": vars(SMALL_EAR), "separator": vars(SMALL_UNET), "query": {}}
    embeddings = {"/m/09x0r": torch.randn(16), "/m/04rlf": torch.randn(16)}
    networks = HTSAT(SMALL_EAR).eval(), UNet(SMALL_UNET).eval()
    prior = PLDAPrior(torch.randn(16), torch.randn(16, 3), torch.randn(16, 3), torch.rand(4))
    return checkpoints.Bundle("small", "3", *networks, config, embeddings, {"weights": [1.5, -0.5]}, prior)


@torch.inference_mode()
@pytest.mark.parametrize(("half", "error"), [(False, 0), (True, 2e-3)])
def test_a_bundle_comes_back_as_it_was_saved(tmp_path, bundle, half, error):
    checkpoints.save(bundle, tmp_path / "new" / "folder", half)
    loaded = checkpoints.load(tmp_path / "new" / "folder")
    assert (loaded.name, loaded.version, loaded.presence) == ("small", "3", bundle.presence)
    assert sorted(file.name for file in (tmp_path / "new" / "folder").iterdir()) == ["config.json", "model.safetensors"]
    for mid, embedding in bundle.class_embeddings.items():
        torch.testing.assert_close(loaded.class_embeddings[mid], embedding, rtol=0, atol=2e-3 if half else 0)
    assert bundle.prior is not None and loaded.prior is not None
    for name, part in bundle.prior.state().items():
        torch.testing.assert_close(loaded.prior.state()[name], part, rtol=0, atol=2e-3 if half else 0)
    mixtures = torch.randn(2, 6000)
    queries = bundle.detector.embed(mixtures)
    torch.testing.assert_close(loaded.detector.embed(mixtures), queries, rtol=0, atol=error * queries.abs().max())
    estimates = bundle.separator(mixtures, queries)
    answers = loaded.separator(mixtures, queries)
    torch.testing.assert_close(answers, estimates, rtol=0, atol=error * estimates.abs().max())
    assert not loaded.detector.training
    assert not loaded.separator.training


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's figures")
def test_the_memory_of_an_entry_is_given_back_with_it(tmp_path):
    def resident() -> int:
        """Return MiB of files that this process has in memory."""
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("RssFile:")).split()[1]) >> 10

    saved = {f"layer {number}": torch.full((2 << 20,), float(number)) for number in range(16)}  # 8 MiB each
    saved |= {"small": torch.arange(3.0), "empty": torch.zeros(0, 5), "number": torch.tensor(7)}
    save_file(saved, tmp_path / "model.safetensors")
    before = (tmp_path / "model.safetensors").read_bytes()
    entries = checkpoints.read_entries(tmp_path / "model.safetensors")
    for name, entry in saved.items():
        assert torch.equal(entries[name], entry), name
    whole = resident()
    entries["layer 15"].mul_(2)  # as batch norms are merged into weights
    kept = {name: entries.pop(name) for name in ("layer 15", "small", "empty", "number")}
    entries.clear()
    assert whole - resident() > 100
    assert kept["layer 15"].eq(30).all()
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_bundle_is_saved_over_another(tmp_path, bundle):
    checkpoints.save(bundle, tmp_path)
    bundle.version = "4"
    checkpoints.save(bundle, tmp_path)
    assert checkpoints.load(tmp_path).version == "4"


def test_the_base_preset_stores_its_query_encoder_once(tmp_path):
    from models.networks.resunet import ResUNet
    from models.networks.yamnet import Yamnet

    detector = Yamnet(class_indices=list(range(521)))
    separator = ResUNet(detector, bands=64, channels=(8, 8, 8, 8), blocks=(1, 1, 1, 1))
    config = {
        "preset": "base",
        "detector": {"class_indices": list(range(521))},
        "separator": {"bands": 64, "channels": [8, 8, 8, 8], "blocks": [1, 1, 1, 1]},
        "query": {},
    }
    checkpoints.save(checkpoints.Bundle("tiny", "1", detector, separator, config), tmp_path)
    loaded = checkpoints.load(tmp_path)
    assert loaded.separator.query_encoder is loaded.detector
    with torch.inference_mode():
        mixtures, queries = torch.randn(1, 16_000), torch.rand(1, 1024)
        torch.testing.assert_close(loaded.separator(mixtures, queries), separator.eval()(mixtures, queries))


@pytest.mark.parametrize(("options", "name"), [((), "paper"), (("--name", "lab"), "lab")])
def test_what_the_authors_files_hold_is_converted_to_a_model_of_a_name(tmp_path, bundle, monkeypatch, options, name):
    """A small model in place of theirs (`test_authors.py`): to halve and to write 1 GB takes seconds."""
    files = []
    monkeypatch.setattr(checkpoints, "authors_bundle", lambda *given: files.append(given) or bundle)
    (tmp_path / "theirs.ckpt").touch()
    arguments = ["--separator", str(tmp_path / "theirs.ckpt"), "-o", str(tmp_path / "model"), *options]
    assert main(["convert", *arguments]) == 0
    assert files == [(None, tmp_path / "theirs.ckpt")]
    assert json.loads((tmp_path / "model" / "config.json").read_text())["name"] == name
    assert checkpoints.load(tmp_path / "model").model_id == f"{name}@3"


def rewrite(path: Path, **changes: object) -> None:
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


BUNDLE_FAULTS = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json: No such file"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors: No such file"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "not JSON"),
    "no name": (lambda folder: rewrite(folder / "config.json", name=None), "'name' is missing"),
    "another preset": (lambda folder: rewrite(folder / "config.json", preset="best"), "unknown preset 'best'"),
    "another network": (lambda folder: rewrite(folder / "config.json", detector={"colour": 1}), "colour"),
    "another size": (
        lambda folder: rewrite(folder / "config.json", detector=vars(SMALL_EAR) | {"classes": 6}),
        r"entry 'detector\.head\.weight' has shape \(5, 16, 8, 3\) instead of \(6, 16, 8, 3\)",
    ),
    "other weights": (lambda folder: rewrite(folder / "config.json", sha256="0" * 64), "its SHA-256 is"),
    "more classes": (lambda folder: rewrite(folder / "config.json", class_embeddings=["/m/1"]), "2 class embeddings"),
}


@pytest.mark.parametrize(("damage", "message"), BUNDLE_FAULTS.values(), ids=BUNDLE_FAULTS.keys())
def test_a_damaged_bundle_is_refused(tmp_path, bundle, damage, message):
    checkpoints.save(bundle, tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointInvalid, match=message):
        checkpoints.load(tmp_path)


def test_an_unknown_name_is_refused_with_those_that_exist():
    with pytest.raises(CheckpointInvalid, match="neither a folder nor one of the shipped models"):
        checkpoints.load("grand")


def test_weights_beyond_float16_are_not_halved(tmp_path, bundle):
    with torch.no_grad():
        bundle.separator.logits.weight.fill_(1e6)
    with pytest.raises(ValueError, match="float32"):
        checkpoints.save(bundle, tmp_path, half=True)
    assert not list(tmp_path.iterdir())
