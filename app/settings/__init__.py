"""Settings of the front end and the workers, with units and defaults; each module has those about one thing.

They are read from environment variables with the prefix `EARMARK_` (`EARMARK_REDIS_URL`, `EARMARK_STORE`, ...). A
program that starts others (`python -m app --embedded`) passes its settings on with `as_environment()`.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

import typer
from pydantic import SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.settings import environment, rules
from app.settings.access import AccessSettings
from app.settings.backends import BackendSettings
from app.settings.budgets import BudgetSettings
from app.settings.jobs import JobSettings
from app.settings.limits import LimitSettings
from app.settings.retention import RetentionSettings
from app.settings.server import ServerSettings


class Bucket(NamedTuple):
    """A bucket of S3, and the prefix of the deployment's keys in it, without slashes at its ends."""

    name: str
    prefix: str


# Pydantic takes the fields of the last base first: rules about two settings, and the table in docker/README.md, need
# this order.
class Settings(
    ServerSettings,
    RetentionSettings,
    AccessSettings,
    BudgetSettings,
    LimitSettings,
    JobSettings,
    BackendSettings,
    BaseSettings,
):
    """Settings of one deployment; frozen, so that they stay as they were validated."""

    model_config = SettingsConfigDict(
        env_prefix="EARMARK_", frozen=True, extra="ignore", hide_input_in_errors=True, allow_inf_nan=False
    )
    _leave_out_service_links = model_validator(mode="before")(rules.leave_out_service_links)

    @classmethod
    def load_or_exit(cls, **options: Any) -> Self:
        """Return the settings of the environment, overridden by a program's options that are not None.

        Print what is invalid and exit with status 2 (`worker.pool.EXIT_UNUSABLE` for workers) where a value is, or
        where a variable is nearly one of a setting; print what else begins like one.
        """
        misspelled, unknown = environment.judge(os.environ, cls.model_fields)
        for name, setting in misspelled.items():
            typer.secho(f"{name} is no setting; {setting} is one", fg="red", err=True)
        if misspelled:
            raise SystemExit(2)
        if unknown:
            typer.secho(f"no settings, and ignored: {', '.join(unknown)}", fg="yellow", err=True)
        try:
            return cls(**{name: value for name, value in options.items() if value is not None})
        except ValidationError as error:
            for invalid in error.errors():
                typer.secho(f"EARMARK_{str(invalid['loc'][0]).upper()}: {invalid['msg']}", fg="red", err=True)
            raise SystemExit(2) from None

    @property
    def store_location(self) -> str:
        """The absolute path of the folder, or the s3:// URL."""
        if self.bucket is not None:
            return self.store
        return str((Path(self.store) if self.store else self.home / "store").absolute())

    @property
    def bucket(self) -> Bucket | None:
        """The bucket that is the store; None if a folder is."""
        if not self.store.startswith(rules.S3):
            return None
        location = urlsplit(self.store)
        return Bucket(location.netloc, location.path.strip("/"))

    @property
    def execution_seconds(self) -> float:
        """After so many seconds an execution of any job is dead for certain: its worker's timeout has killed it."""
        return 2 * self.execution_timeout(None, self.high_quality_factor) + 600

    def execution_timeout(self, audio_seconds: float | None, effort: float = 1.0) -> float:
        """Return the seconds that one execution of a job may take, by the length of its recording as far as it is
        known, and its effort: how many times as long it takes as another one of this length."""
        longest = self.recording_seconds
        seconds = longest if audio_seconds is None else min(audio_seconds, longest)
        return self.job_timeout + self.job_timeout_factor * effort * seconds

    def as_environment(self) -> dict[str, str]:
        """Return the settings that were set explicitly, as environment variables for a program that this one starts."""
        variables = {}
        for name in self.model_fields_set:
            value = getattr(self, name)
            if value is not None:
                text = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
                variables[f"EARMARK_{name.upper()}"] = text
        return variables
