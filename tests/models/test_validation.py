"""What models are measured with while they are trained: the validation mixtures and the measures."""

import json
from pathlib import Path

import pytest
import torch

from models.corpus.relations import are_related
from models.validation import mixtures
from models.validation.metrics import attenuation, sdr, si_sdr

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_validation_list_is_what_it_says(shared: Path) -> None:
    import tarfile

    rows = mixtures.read()
    assert len(rows) == 300
    listed = {key for row in rows for key in (row.target, row.interference, row.query, row.absent)}
    with tarfile.open(shared / "corpus" / "valid-000.tar") as tar:
        described = {
            member.name.split(".")[0]: json.loads(tar.extractfile(member).read())  # type: ignore[union-attr]
            for member in tar
            if member.name.endswith(".json") and member.name.split(".")[0] in listed
        }
    assert set(described) == listed
    for row in rows:
        target, interference, query, absent = (
            described[key] for key in (row.target, row.interference, row.query, row.absent)
        )
        assert target["mids"] == query["mids"] and target["group"] != query["group"]
        assert not are_related(target["mids"][0], interference["mids"][0])
        assert not any(are_related(absent["mids"][0], other["mids"][0]) for other in (target, interference))


def test_measures() -> None:
    target, noise = torch.randn(4, 1_000), torch.randn(4, 1_000)
    noise -= (noise * target).sum(1, keepdim=True) / target.square().sum(1, keepdim=True) * target
    noise *= (target.square().sum(1) / noise.square().sum(1)).sqrt()[:, None]
    estimate = target + 0.1 * noise
    assert torch.allclose(si_sdr(estimate, target), torch.full((4,), 20.0), atol=1e-3)
    assert torch.allclose(si_sdr(3 * estimate, target), torch.full((4,), 20.0), atol=1e-3)
    assert torch.allclose(sdr(estimate, target), torch.full((4,), 20.0), atol=1e-3)
    assert torch.allclose(sdr(0.5 * target, target), torch.full((4,), 6.02), atol=1e-2)
    assert torch.allclose(attenuation(0.1 * target, target), torch.full((4,), 20.0), atol=1e-3)
