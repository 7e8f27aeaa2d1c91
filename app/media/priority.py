"""Priority of a decoder process: it falls after a while, so that short work of one client is done before long work of
another, to which the niceness that both start with is the same."""

import os
import signal

SHORT_SECONDS = 0.1  # of CPU time, several times what a probe, or the waveform of some seconds, takes
NICENESS = 5  # with which every decoder starts: it yields to the server that answers all requests
_STEP = 5  # of niceness: a third of the CPU time; with less, long work might not end in time on a busy machine


def lower_after(cpu_seconds: float) -> None:
    """Lower the priority of this process, for its main thread, once it has used so many seconds of CPU time."""
    signal.signal(signal.SIGPROF, lambda *_: os.nice(_STEP))
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
