"""Many recordings in one command: `separate` and `detect` of files, folders and globs."""
