"""Figures with intervals, as tables, JSON and pictures."""
