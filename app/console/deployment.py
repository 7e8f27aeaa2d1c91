"""The deployment that a command of an operator works on: its settings and its Redis.

An expected error is printed as a sentence, and the command exits with 1; a traceback is for defects.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from redis import Redis
from redis.exceptions import RedisError

from app.embedded import EmbeddedError, queue_settings
from app.errors import EarmarkError, StoreUnavailable
from app.redis_client import connect
from app.settings import Settings

Embedded = Annotated[bool, typer.Option("--embedded", help="Use the embedded service that runs on EARMARK_HOME.")]


@contextmanager
def exit_on_failure(embedded: bool = False) -> Iterator[None]:
    """Print an expected error as a sentence and exit with 1. embedded: whether Redis is that of `--embedded`."""
    try:
        yield
    except StoreUnavailable as error:
        sentence = f"The store (EARMARK_STORE): {error.detail}"
    except (EmbeddedError, EarmarkError) as error:
        sentence = str(error)
    except RedisError as error:
        where = "of the embedded service" if embedded else "(EARMARK_REDIS_URL)"
        hint = "Start that: earmark serve --embedded." if embedded else "For the embedded service, give --embedded."
        sentence = f"Redis {where} does not answer: {str(error).rstrip('.')}. {hint}"
    else:
        return
    print_error(sentence)
    raise typer.Exit(1)


@contextmanager
def open_deployment(embedded: bool = False) -> Iterator[tuple[Settings, Redis]]:
    """Yield the settings and a connection to Redis, within `exit_on_failure`.

    embedded: those of the embedded service that runs on EARMARK_HOME.
    """
    with exit_on_failure(embedded):
        settings = load_settings(embedded)
        with connect(settings) as redis:
            yield settings, redis


def load_settings(embedded: bool) -> Settings:
    """Return the settings of the environment; embedded: those of the service on EARMARK_HOME, else EmbeddedError."""
    settings = Settings.load_or_exit()
    if not embedded:
        return settings
    if "auth" not in settings.model_fields_set:
        settings = Settings.load_or_exit(auth="off")  # its default, as `python -m app --embedded` has it
    return queue_settings(settings)


def print_error(sentence: str) -> None:
    """Print a sentence about what is wrong, in red, to standard error."""
    typer.secho(sentence, fg="red", err=True)
