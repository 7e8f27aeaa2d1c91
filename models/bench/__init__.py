"""`python -m models bench`: speed and peak memory on this machine, beside its own limits and other ways of working."""
