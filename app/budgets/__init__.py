"""Budgets: what the clients of a process share, with a bound in all and a share of it for each API key."""
