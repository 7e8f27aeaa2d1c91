"""API keys: authentication, rate limits and quotas, and signed URLs that work without a key."""
