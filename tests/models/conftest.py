"""Session fixtures: the shipped model in both precisions; the paper's two files, filled with known numbers."""

import importlib.util
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import torch

from models.corpus import decoded
from models.corpus.clips import Clips
from models.engine import Engine


class AuthorsFiles(NamedTuple):
    detector: Path
    separator: Path


@pytest.fixture(scope="session")
def exact() -> Engine:
    return Engine.load("base", device="cpu", precision="exact")


@pytest.fixture(scope="session")
def auto() -> Engine:
    return Engine.load("base", device="cpu")


@pytest.fixture(scope="session")
def validation_clips(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Iterable[object]], Clips]:
    """Decodes the clips of the shared corpus's validation split that rows name: all take 26 s of a processor."""

    def decode(rows: Iterable[object]) -> Clips:
        named, folder = " ".join(map(str, rows)), tmp_path_factory.mktemp("validation")
        shard = "valid-000.tar"
        with tarfile.open(shared / "corpus" / shard) as whole, tarfile.open(folder / shard, "w") as part:
            for member in whole:
                if member.name.partition(".")[0] in named:
                    part.addfile(member, whole.extractfile(member))
        return decoded.load(folder, "valid", folder / "cache", workers=1)

    return decode


@pytest.fixture(scope="session")
def parity(shared: Path) -> Path:
    """The folder with the layout, the recipe and the authors' answers."""
    return shared / "parity"


@pytest.fixture(scope="session")
def recipe(parity: Path) -> ModuleType:
    """The module that fills the authors' layout."""
    spec = importlib.util.spec_from_file_location("fill", parity / "fill.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def authors_files(recipe: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuthorsFiles]:
    """Both of the authors' files, 2.3 GB, as Lightning writes them; seed 0, as the golden answers want."""
    folder = tmp_path_factory.mktemp("authors")
    files = AuthorsFiles(folder / "htsat_audioset_2048d.ckpt", folder / "zeroshot_asp_full.ckpt")
    whole = recipe.filled("separator")
    inside = "at_model."
    detector = {name.removeprefix(inside): entry for name, entry in whole.items() if name.startswith(inside)}
    torch.save({"epoch": 9, "state_dict": detector}, files.detector)
    torch.save({"epoch": 9, "state_dict": whole}, files.separator)
    yield files
    shutil.rmtree(folder)  # pytest would keep those of three sessions


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads of small products wait for each other more than they compute, most of all beside other programs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
