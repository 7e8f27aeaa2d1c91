"""The stage timer: how long each stage of an execution takes."""

import time
from collections.abc import Mapping


class StageTimer:
    """Seconds spent in each stage; a stage lasts until the next one begins."""

    def __init__(self) -> None:
        self._start = self._stage_start = time.monotonic()
        self._stage = ""
        self._seconds: dict[str, float] = {}

    def enter(self, stage: str) -> None:
        """End the current stage and begin this one."""
        now = time.monotonic()
        self._seconds[self._stage] = self._seconds.get(self._stage, 0.0) + now - self._stage_start
        self._stage, self._stage_start = stage, now

    def metrics(self, metric_of_stage: Mapping[str, str], duration: float) -> dict[str, float]:
        """Return the seconds of each metric, and the real-time factor of the whole for a recording of `duration` s.

        metric_of_stage: the metric that a stage's seconds count towards.
        """
        self.enter(self._stage)
        metrics = dict.fromkeys(metric_of_stage.values(), 0.0)
        for stage, seconds in self._seconds.items():
            if stage:
                metrics[metric_of_stage[stage]] += seconds
        metrics["real_time_factor"] = (time.monotonic() - self._start) / max(duration, 1e-3)
        return {name: round(value, 4) for name, value in metrics.items()}
