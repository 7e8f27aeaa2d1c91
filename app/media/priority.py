"""Priority of a decoder process: it falls after a while, so that short work of one client is done before long work of
another, to which the niceness that both start with is the same."""

import os
import signal
import time

SHORT_SECONDS = 0.1  # of CPU time, several times what a probe, or the waveform of some seconds, takes
NICENESS = 5  # with which every decoder starts: it yields to the server that answers all requests
_STEP = 5  # of niceness: a third of the CPU time; with less, long work might not end in time on a busy machine
_RETRY_SECONDS = 0.004  # of CPU time, a tick


def lower_after(cpu_seconds: float) -> None:
    """Lower the priority of this process, for its main thread, once it has used so many seconds of CPU time."""
    end = time.process_time() + cpu_seconds

    def lower_or_wait(*_: object) -> None:
        # The kernel counts a whole tick for whatever runs in it, so on a busy machine the timer fires early.
        if time.process_time() < end:
            signal.setitimer(signal.ITIMER_PROF, _RETRY_SECONDS)
        else:
            os.nice(_STEP)

    signal.signal(signal.SIGPROF, lower_or_wait)
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
