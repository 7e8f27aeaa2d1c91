"""Units of settings."""

MIB = 1024 * 1024  # bytes
HOUR = 3600.0  # s
