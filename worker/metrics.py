"""A worker's own figures beside those of its jobs: how full its batches are, and what its GPU does."""

import logging
from collections.abc import Iterable
from typing import Any

from prometheus_client import Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from app import metrics

logger = logging.getLogger("earmark.worker")

batch_size = Histogram(
    "earmark_batch_size",
    "Masks computed at once: windows times targets",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128),
    registry=metrics.PROCESS,
)


class GpuMetrics(Collector):
    """One GPU's memory and use, asked of its driver when Prometheus looks.

    driver: the module pynvml, initialised; uuid: the GPU's own name, since its number here need not be the driver's.
    """

    def __init__(self, driver: Any, uuid: str) -> None:
        self._driver = driver
        self._gpu = driver.nvmlDeviceGetHandleByUUID(uuid)
        self._name = uuid

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return []

    def collect(self) -> Iterable[GaugeMetricFamily]:
        memory = self._driver.nvmlDeviceGetMemoryInfo(self._gpu)
        busy = self._driver.nvmlDeviceGetUtilizationRates(self._gpu).gpu / 100
        for name, help_text, value in (
            ("earmark_gpu_memory_used_bytes", "Memory in use on the GPU, by all processes", memory.used),
            ("earmark_gpu_memory_total_bytes", "Memory of the GPU", memory.total),
            ("earmark_gpu_use_ratio", "Share of the last second in which the GPU computed", busy),
        ):
            family = GaugeMetricFamily(name, help_text, labels=["gpu"])
            family.add_metric([self._name], value)
            yield family


def watch_gpu(uuid: str) -> None:
    """Add a GPU's figures to this process's; without its driver there are none, and a log line says so."""
    import pynvml

    try:
        pynvml.nvmlInit()
        metrics.PROCESS.register(GpuMetrics(pynvml, uuid))
    except pynvml.NVMLError as error:
        logger.warning("no figures of the GPU: %s", error)
