"""The description of `base` that the front end ships is what its workers announce."""

import json
from pathlib import Path

import pytest
from redis import Redis

from app.errors import LabelUnknown as RefusedOverHttp
from app.errors import ModelUnavailable
from app.job_api.validation import find_class
from app.labels.matching import near_names
from app.model_registry.registry import ModelRegistry
from app.settings import Settings
from models.engine import Engine
from models.errors import LabelUnknown
from tests.conftest import REPOSITORY

BUILT_IN = REPOSITORY / "app" / "model_registry" / "base.json"
# Names with a typo, and the name that is suggested first.
UNKNOWN = {
    "Brid": "Bird",
    "Dgo": "Dog",
    "Rian": "Rain",
    "Drmu": "Drum",
    "Bele": "Bell",
    "Sirn": "Siren",
    "Ambulence": "Ambulance (siren)",
}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load("base", device="cpu")


def test_the_description_of_base_is_what_workers_announce(engine: Engine) -> None:
    announced = json.loads(json.dumps(engine.describe()))
    assert json.loads(BUILT_IN.read_text()) == announced, (
        "run python -m models describe -o app/model_registry/base.json"
    )


@pytest.mark.parametrize("text", UNKNOWN)
def test_the_command_line_and_the_api_suggest_the_same_names(engine: Engine, redis: Redis, text: str) -> None:
    with pytest.raises(LabelUnknown) as on_command_line:
        engine.label(text)
    with pytest.raises(RefusedOverHttp) as over_http:
        find_class(ModelRegistry(redis, Settings()).resolve(None), text)
    assert on_command_line.value.near[0] == UNKNOWN[text]
    assert near_names(on_command_line.value.near[:3]) in over_http.value.detail


def test_the_default_model_is_known_before_it_is_announced(redis: Redis) -> None:
    registry = ModelRegistry(redis, Settings())
    shipped = registry.resolve(None)
    assert shipped.name == "base" and registry.worker_count(shipped.id) == 0
    assert [model.id for model in registry.available()] == [shipped.id]
    with pytest.raises(ModelUnavailable):
        registry.resolve("base@of-tomorrow")
    announced = json.loads(BUILT_IN.read_text()) | {"version": "of-tomorrow"}
    registry.announce(announced, "worker")
    assert registry.resolve(None).version == "of-tomorrow"
    assert [model.id for model in registry.available()] == [shipped.id, "base@of-tomorrow"]


def test_further_models_are_known_from_a_folder(redis: Redis, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(json.dumps(json.loads(BUILT_IN.read_text()) | {"name": "mine"}))
    registry = ModelRegistry(redis, Settings(model="mine", model_descriptions=tmp_path))
    assert registry.resolve(None).name == "mine"
    assert [model.name for model in registry.available()] == ["mine"], "base is not served here"


def test_a_model_without_a_description_waits_for_its_announcement(redis: Redis) -> None:
    with pytest.raises(ModelUnavailable):
        ModelRegistry(redis, Settings(model="other")).resolve(None)
