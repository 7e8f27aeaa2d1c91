"""Detections: which classes sound in a recording, and when."""
