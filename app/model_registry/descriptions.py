"""Descriptions of the models that a deployment is configured for: its jobs may wait before any worker lives.

The description of `base` is a file beside this module, made from its weights by `python -m models describe`; those of
other models, or of another version of `base`, are in the folder `EARMARK_MODEL_DESCRIPTIONS`. What a worker announces
takes precedence.
"""

from functools import cache
from pathlib import Path

from app.settings import Settings

_BUILT_IN = Path(__file__).parent


class ConfiguredModels:
    """The model that requests are for by default, if its description is built in, and those in the settings' folder."""

    def __init__(self, settings: Settings) -> None:
        self._files = {path.stem: path for path in _BUILT_IN.glob("*.json") if path.stem == settings.model}
        if settings.model_descriptions is not None:
            self._files |= {path.stem: path for path in settings.model_descriptions.glob("*.json")}

    def texts(self) -> dict[str, str]:
        """Return the descriptions, JSON as workers announce it, by the names of the files. Raises OSError."""
        return {name: _read(path) for name, path in self._files.items()}


@cache
def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")
