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
def exit_on_failure() -> Iterator[None]:
    """Print an expected error as a sentence and exit with 1."""
    try:
        yield
    except StoreUnavailable as error:
        sentence = f"The store (EARMARK_STORE): {error.detail}"
    except (EmbeddedError, EarmarkError) as error:
        sentence = str(error)
    except RedisError as error:
        sentence = f"Redis (EARMARK_REDIS_URL) does not answer: {error}"
    else:
        return
    print_error(sentence)
    raise typer.Exit(1)


@contextmanager
def open_deployment(embedded: bool = False) -> Iterator[tuple[Settings, Redis]]:
    """Yield the settings and a connection to Redis, within `exit_on_failure`.

    embedded: those of the embedded service that runs on EARMARK_HOME.
    """
    with exit_on_failure():
        settings = Settings.load_or_exit()
        if embedded:
            settings = queue_settings(settings)
        with connect(settings) as redis:
            yield settings, redis


def print_error(sentence: str) -> None:
    """Print a sentence about what is wrong, in red, to standard error."""
    typer.secho(sentence, fg="red", err=True)
