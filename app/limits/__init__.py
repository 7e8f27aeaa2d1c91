"""Limits of requests, and what the caller has left of them."""
