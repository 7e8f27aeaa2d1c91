"""Demonstration: separate a bundled recording over HTTP, measure the result, and plot spectrograms."""
