"""The object store's access for this worker: asked for at the start, and again where a job's call is refused."""

import logging
import time
from collections.abc import Sequence

from app.errors import StoreRefused, StoreUnavailable
from app.settings import Settings
from app.storage import Storage

logger = logging.getLogger("earmark.worker")

PAUSES = (0.5, 1.0, 2.0, 4.0)  # s between tries of a store that refuses: one that starts has no bucket for a second


def open_store(settings: Settings, pauses: Sequence[float] = PAUSES) -> Storage:
    """Open the store. Raises StoreRefused if it goes on to refuse this worker, StoreUnavailable if it has no folder.

    It does not wait for a store that does not respond: jobs do.
    """
    storage = Storage.open(settings)
    refusal = find_refusal(storage)
    for seconds in pauses:
        if refusal is None:
            break
        time.sleep(seconds)
        refusal = find_refusal(storage)
    if refusal is not None:
        raise refusal
    return storage


def find_refusal(storage: Storage) -> StoreRefused | None:
    """Return the store's refusal of this worker; None if it refuses nothing, single calls only, or does not respond."""
    try:
        storage.check()
    except StoreRefused as error:
        logger.warning("%s %s", error.detail, error.advice)
        return error
    except StoreUnavailable as error:
        logger.warning("the store does not respond: %s", error.detail)
    return None
