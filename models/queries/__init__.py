"""Queries: from examples, names and spans to the embedding that a separator is asked with."""
