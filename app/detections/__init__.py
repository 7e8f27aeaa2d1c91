"""Detections: what is heard in a recording, and when."""
