"""API keys: who may ask, how much of it, and addresses that work without one."""
