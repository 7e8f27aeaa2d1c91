"""Evaluations of detectors: ranking of classes, and times of events."""
