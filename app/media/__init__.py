"""Untrusted media files, read in a sandboxed child process."""
