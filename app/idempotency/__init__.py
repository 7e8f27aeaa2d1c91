"""`Idempotency-Key`: a repeated request is processed once, and its response replayed."""
