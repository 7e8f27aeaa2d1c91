"""Limits: what may be sent, and what a caller has left."""
