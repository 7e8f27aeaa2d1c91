"""How networks run on a machine: device and precision, threads, memory, batches."""
