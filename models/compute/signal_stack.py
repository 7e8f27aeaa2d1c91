"""A stack of its own for signal handlers.

Some of oneDNN's kernels (packed linear layers on AVX2) behave as if they used the stack pointer as one more register: a
signal that arrives meanwhile, such as SIGTERM or Ctrl-C, corrupts the heap, hence wrong numbers or a crash. With an
alternate stack (sigaltstack) its handler does no harm.
"""

import faulthandler
import sys


def give_signals_a_stack() -> None:
    """Let signals that reach this thread be handled on an alternate stack, which `faulthandler` brings with it; Python
    installs all its handlers so that they use one. The system sends a process's signals to the main thread, so that is
    the one to call this in."""
    if not faulthandler.is_enabled() and sys.__stderr__ is not None:
        faulthandler.enable(sys.__stderr__)
