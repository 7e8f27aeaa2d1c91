"""A pool of worker processes started as one program, so that on one GPU one computes while another decodes, encodes or
transfers.

Each process has its own model, its own jobs and its own port for metrics, so the others survive a failure of one.
"""

import os
import signal
import sys
from collections.abc import Sequence

from app.settings import Settings
from app.supervisor import Program, Supervisor, stop_on_signals
from models.compute import threads

EXIT_UNUSABLE = 2  # the exit status of a worker that cannot run jobs, and so need not be restarted
PATIENCE = 20.0  # s beyond `hand_over_after` that a worker may take to hand its job over


class WorkersUnusable(Exception):
    """A worker cannot run jobs; its own message says why."""


def run(settings: Settings, options: Sequence[str], hand_over_after: float) -> None:
    """Run `settings.worker_processes` workers until a signal to stop, and restart those that die.

    options: of `python -m worker`, for each of them. Raises WorkersUnusable.
    """
    supervisor = Supervisor()
    stopping = stop_on_signals(on_repeat=supervisor.terminate)  # a second signal: jobs go back to the queue now
    programs = [_program(settings, index, options, hand_over_after) for index in range(settings.worker_processes)]
    try:
        for program in programs:
            supervisor.add(program)
        while not stopping.wait(0.2):
            supervisor.restart_dead()
            if any(program.status == EXIT_UNUSABLE for program in programs):
                raise WorkersUnusable
    finally:
        supervisor.stop_together()


def _program(settings: Settings, index: int, options: Sequence[str], hand_over_after: float) -> Program:
    port = settings.worker_metrics_port
    command = [sys.executable, "-m", "worker", *options, "--processes", "1"]
    environment = {
        "EARMARK_WORKER_METRICS_PORT": str(port + index if port else 0),
        **threads.variables(os.environ, settings.worker_threads, settings.worker_processes),
    }
    # A worker whose parent was killed still gives its job back.
    death_signal, stop_timeout = signal.SIGTERM, hand_over_after + PATIENCE
    return Program(f"worker {index}", command, environment, parent_death_signal=death_signal, stop_timeout=stop_timeout)
