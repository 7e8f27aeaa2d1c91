"""The paper's networks, filled with known numbers, against the outputs of the authors' program."""

import numpy as np
import pytest
import torch
from torch import Tensor

from models.audio import Waveform
from models.authors import load_authors
from models.checkpoints import Bundle, authors_bundle
from models.engine import Engine
from models.networks.htsat import HTSAT
from models.networks.unet import UNet
from models.options import SeparationOptions

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
def bundle(authors_files) -> Bundle:
    return authors_bundle(separator=authors_files.separator)


@pytest.fixture(scope="module")
def networks(bundle) -> tuple[HTSAT, UNet]:
    return bundle.detector, bundle.separator


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


def test_a_query_of_two_second_windows_separates_as_the_authors_program_does(golden, bundle):
    model = Engine(bundle, device="cpu", precision="exact")  # no shortcut: the networks stay as they are
    query = model.embed([Waveform(golden["query_7s"][None], 32_000)])
    assert golden.error("query_embedding", query.vector) < DETECTOR_ERROR
    mixture, kept = golden["mixture_6.9s"][None], golden["separated_6s"]
    done = model.separate(Waveform(mixture, 32_000), {"it": query}, SeparationOptions(2, 0, 0, gate=False))
    stem = done.stems["it"].samples
    assert stem.shape == mixture.shape
    assert golden.error("separated_6s", stem[0, : len(kept)]) < SEPARATOR_ERROR
    # The authors' program drops the last 0.9 s: here they are, and about as loud as what is before them.
    loudness = [10 * part.square().mean().log10().item() for part in (stem[0, len(kept) :], kept)]
    assert loudness[0] == pytest.approx(loudness[1], abs=10)


def test_the_detectors_own_file_holds_the_detector_that_the_separators_carries(authors_files, networks):
    detector, separator = load_authors(detector=authors_files.detector)
    assert separator is None
    assert not detector.training
    carried = networks[0].state_dict()
    assert all(torch.equal(entry, carried[name]) for name, entry in detector.state_dict().items())
