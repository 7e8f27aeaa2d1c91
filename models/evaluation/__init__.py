"""Figures: how well targets are separated, by fixed lists of mixtures."""
