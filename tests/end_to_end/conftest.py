"""Real servers and real programs: Valkey with its log, housekeeping, workers, the API; and a small real model."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.end_to_end.deployment import Deployment
from tests.end_to_end.figures import SOAK, Figures
from tests.end_to_end.small_model import save_small_model


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle of the default preset's networks, small and untrained: quick, on the real path."""
    folder = tmp_path_factory.mktemp("small-model")
    save_small_model(folder)
    return folder


@pytest.fixture(scope="session")
def figures() -> Iterator[Figures]:
    """Takes what tests measure; `make soak` puts it into docker/README.md."""
    figures = Figures()
    yield figures
    if SOAK:
        figures.write()


@pytest.fixture
def deploy(tmp_path: Path, small_model: Path) -> Iterator[Callable[..., Deployment]]:
    """Makes deployments in folders of their own, from settings; stops everything afterwards."""
    made: list[Deployment] = []

    def make(**settings: object) -> Deployment:
        deployment = Deployment(tmp_path / f"deployment-{len(made)}", small_model, settings)
        made.append(deployment)
        return deployment

    yield make
    for deployment in made:
        deployment.close()
        print(deployment.logs())  # shown where the test has failed
