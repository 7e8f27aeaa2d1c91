"""The heartbeat of a worker that other programs see: in the model registry."""

import logging
import threading

from redis.exceptions import RedisError

from app.model_registry.registry import ModelRegistry
from models.engine import Engine

logger = logging.getLogger("earmark.worker")


class RegistryHeartbeat(threading.Thread):
    """Sends a worker's heartbeat to the model registry, and announces the model again if the server has lost it.

    worker: its name. short: it takes short jobs only. interval: s between beats.
    """

    def __init__(self, registry: ModelRegistry, engine: Engine, worker: str, short: bool, interval: float) -> None:
        super().__init__(name="earmark-worker-heartbeat", daemon=True)
        self._registry = registry
        self._description = engine.describe()
        self._model = engine.model_id
        self._worker = worker
        self._short = short
        self._interval = interval
        self._stopping = threading.Event()

    def run(self) -> None:
        while not self._stopping.wait(self._interval):
            try:
                self._beat()
            except RedisError as error:
                logger.warning("Redis does not answer: %s", error)

    def announce(self) -> None:
        """Announce the model and the worker, before the first beat. Raises RedisError."""
        self._registry.announce(self._description, self._worker, self._short)

    def _beat(self) -> None:
        if self._registry.is_announced(self._model):
            self._registry.heartbeat(self._model, self._worker, self._short)
        else:
            logger.warning("Redis has lost its content; announcing %s again", self._model)
            self.announce()

    def stop(self) -> None:
        """Stop, and sign off."""
        self._stopping.set()
        self.join()
        try:
            self._registry.leave(self._model, self._worker)
        except RedisError as error:
            logger.warning("could not sign off at the model registry: %s", error)
