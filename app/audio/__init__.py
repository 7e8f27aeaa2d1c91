"""Uploads of recordings: from forms, by URL and presigned; their records, bytes and waveform peaks."""
