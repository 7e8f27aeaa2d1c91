"""Labelled audio: WebDataset shards read into one flat array."""
