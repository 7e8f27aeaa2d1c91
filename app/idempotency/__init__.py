"""`Idempotency-Key`: a request that is sent again is answered again, and not done again."""
