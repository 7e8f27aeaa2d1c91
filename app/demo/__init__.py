"""The demonstration: a bundled recording separated over HTTP, measured, and drawn."""
