"""Untrusted media files: the sandbox that reads them, the probe and the waveform."""
