"""The paper's networks, filled with known numbers, against the outputs of the authors' program."""

import numpy as np
import pytest
import torch
from torch import Tensor

from models.authors import load_authors
from models.networks.htsat import HTSAT
from models.networks.unet import UNet

DETECTOR_ERROR = 1e-5  # of the golden array's maximum; correct ones are near 1e-6, a wrong window near 6e-5
SEPARATOR_ERROR = 2e-5


class Golden:
    """The authors' answers: integer audio as float32 in [-1, 1], the rest as it is."""

    def __init__(self, path) -> None:
        with np.load(path) as arrays:
            self.arrays = dict(arrays)

    def __getitem__(self, name: str) -> Tensor:
        array = self.arrays[name]
        return torch.from_numpy(array.astype(np.float32) / 32767 if array.dtype == np.int16 else array)

    def error(self, name: str, answer: Tensor) -> float:
        """Largest difference, as a share of the golden array's maximum."""
        golden = self[name]
        assert answer.shape == golden.shape
        return ((answer - golden).abs().max() / golden.abs().max()).item()


@pytest.fixture(scope="module")
def golden(parity):
    return Golden(parity / "golden.npz")


@pytest.fixture(scope="module")
def networks(authors_files) -> tuple[HTSAT, UNet]:
    detector, separator = load_authors(separator=authors_files.separator)
    assert separator is not None
    return detector, separator


@pytest.mark.parametrize("clip", ["2s", "10s"])
@torch.inference_mode()
def test_the_detector_answers_as_the_authors_does(clip, golden, networks):
    heard = networks[0](golden[f"clip_{clip}"][None])
    assert heard.framewise.shape == (1, 1024, 527)
    assert golden.error(f"sed_{clip}_latent", heard.embedding[0]) < DETECTOR_ERROR
    assert golden.error(f"sed_{clip}_clipwise", heard.clipwise[0]) < DETECTOR_ERROR
    assert golden.error(f"sed_{clip}_framewise", heard.framewise[0, 16::32]) < DETECTOR_ERROR


@pytest.mark.parametrize("clip", ["2s", "3s"])
@torch.inference_mode()
def test_the_separator_answers_as_the_authors_does(clip, golden, networks):
    separator = networks[1]
    mixture, query = golden[f"clip_{clip}"][None], golden["sed_2s_latent"][None]
    spectrum = separator.spectrum(mixture)
    masked = separator.mask(spectrum.abs(), separator.condition(query)) * spectrum
    assert golden.error(f"sep_{clip}_mag", masked.abs()[0, ::8, ::4]) < SEPARATOR_ERROR
    estimate = separator.waveform(masked, mixture.shape[1])
    assert golden.error(f"sep_{clip}_wav", estimate[0]) < SEPARATOR_ERROR


@torch.inference_mode()
def test_a_query_of_two_second_windows_separates_as_the_authors_program_does(golden, networks):
    detector, separator = networks
    windows = golden["query_7s"][: 3 * 64_000].view(3, 64_000)
    windows = windows[windows.square().sum(1) > 0.1]
    query = detector.embed(windows).mean(0)
    assert golden.error("query_embedding", query) < DETECTOR_ERROR
    mixture = golden["mixture_6.9s"][: 3 * 64_000].view(3, 64_000)
    assert golden.error("separated_6s", separator(mixture, query.expand(3, -1)).flatten()) < SEPARATOR_ERROR


def test_the_detectors_own_file_holds_the_detector_that_the_separators_carries(authors_files, networks):
    detector, separator = load_authors(detector=authors_files.detector)
    assert separator is None
    assert not detector.training
    carried = networks[0].state_dict()
    assert all(torch.equal(entry, carried[name]) for name, entry in detector.state_dict().items())
