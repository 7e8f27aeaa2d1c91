"""Saved queries: examples of a sound made an embedding, to ask with again and again."""
