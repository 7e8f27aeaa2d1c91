"""`/v1/usage`: what a caller has used, by day."""
