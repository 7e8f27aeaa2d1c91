"""Saved queries: embeddings of examples, to use in any number of separations."""
