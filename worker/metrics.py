"""Metrics of a worker process: the sizes of its batches, the memory and use of its GPU."""

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
    """Memory and use of one GPU, read from the driver at each scrape.

    driver: the module pynvml, initialised. uuid: of the GPU, whose number in torch may differ from the driver's.
    """

    def __init__(self, driver: Any, uuid: str) -> None:
        self._driver = driver
        self._gpu = driver.nvmlDeviceGetHandleByUUID(uuid)
        self._uuid = uuid

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return []

    def collect(self) -> Iterable[GaugeMetricFamily]:
        memory = self._driver.nvmlDeviceGetMemoryInfo(self._gpu)
        use = self._driver.nvmlDeviceGetUtilizationRates(self._gpu).gpu / 100
        for name, help_text, value in (
            ("earmark_gpu_memory_used_bytes", "Memory in use on the GPU, by all processes", memory.used),
            ("earmark_gpu_memory_total_bytes", "Memory of the GPU", memory.total),
            ("earmark_gpu_use_ratio", "Share of the last second in which the GPU computed", use),
        ):
            family = GaugeMetricFamily(name, help_text, labels=["gpu"])
            family.add_metric([self._uuid], value)
            yield family


def watch_gpu(uuid: str) -> None:
    """Add the metrics of a GPU to this process's; log a warning if there is no driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
        metrics.PROCESS.register(GpuMetrics(pynvml, uuid))
    except pynvml.NVMLError as error:
        logger.warning("no metrics of the GPU: %s", error)
