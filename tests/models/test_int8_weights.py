"""Large matrices of a separator are stored as int8, with a scale for each row."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from models import checkpoints
from models.errors import CheckpointInvalid
from models.networks.resunet import ResUNet
from models.networks.yamnet import Yamnet
from models.queries.query import BASE_RULES

PATH = Path("model.safetensors")


def layer(state: dict[str, torch.Tensor]) -> nn.Linear:
    network = nn.Linear(5, 3, bias=False)
    checkpoints.fill(network, "", state, PATH)
    return network


@given(size=st.floats(1e-6, 1e4), seed=st.integers(0, 100))
def test_every_number_is_within_half_a_step_of_its_row(size: float, seed: int) -> None:
    matrix = size * torch.randn(3, 5, generator=torch.Generator().manual_seed(seed))
    matrix[1] = 0
    stored = checkpoints.to_int8("weight", matrix)
    assert stored["weight"].dtype == torch.int8
    error = (layer(dict(stored)).weight - matrix).abs()
    assert (error <= 0.501 * stored["weight.scale"][:, None]).all()
    assert not error[1].any()


@pytest.mark.parametrize("change", [{}, {"weight.scale": torch.ones(4)}, {"weight.scale": torch.ones(3, 1)}])
def test_an_int8_matrix_without_its_scales_is_refused(change: dict[str, torch.Tensor]) -> None:
    with pytest.raises(CheckpointInvalid, match="'weight' is int8"):
        layer({"weight": torch.ones(3, 5, dtype=torch.int8)} | change)


def test_weights_that_are_not_finite_are_not_stored() -> None:
    with pytest.raises(ValueError, match="not finite"):
        checkpoints.to_int8("weight", torch.tensor([[1.0, torch.inf]]))


def test_a_saved_separator_is_40_db_from_its_own_at_least(tmp_path: Path) -> None:
    torch.manual_seed(0)
    detector = Yamnet([0, 1])
    separator = ResUNet(detector, channels=(4, 4, 4, 64), blocks=(1, 1, 1, 1))
    config: dict[str, Any] = {
        "preset": "base",
        "detector": {"class_indices": [0, 1]},
        "separator": {"channels": [4, 4, 4, 64], "blocks": [1] * 4},
    }
    config["query"] = vars(BASE_RULES)
    checkpoints.save(checkpoints.Bundle("int8", "1", detector.eval(), separator.eval(), config), tmp_path, half=True)
    types = {name: entry.dtype for name, entry in checkpoints.read_entries(tmp_path / "model.safetensors").items()}
    assert {name for name, dtype in types.items() if dtype == torch.int8} == {
        f"separator.{name}"
        for name, entry in separator.state_dict().items()
        if entry.ndim == 2 and entry.numel() >= checkpoints.LARGE_MATRIX
    }
    loaded = checkpoints.load(tmp_path).separator.state_dict()
    for name, entry in separator.state_dict().items():
        if entry.ndim > 1 and entry.any():
            assert (loaded[name] - entry).norm() < 0.01 * entry.norm(), name
