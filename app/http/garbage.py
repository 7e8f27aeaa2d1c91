"""Garbage collection of a server: a full one holds all of its threads, and the event loop with them.

Modules, routes and schemas are some hundred thousand objects, which live as long as the process: to look through them
takes 70 ms of processor time, again and again while clients open event streams.
"""

import gc

# Collections of the middle generation, some thousand objects each, from one full collection to the next (default: 10):
# streams that stay open are looked through less often, and what ended ones leave is kept somewhat longer.
_FULL_EVERY = 100


def freeze() -> None:
    """Leave what exists now out of all later collections, and let full ones be rare."""
    gc.collect()
    gc.freeze()
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, _FULL_EVERY)
