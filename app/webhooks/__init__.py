"""Webhooks, by Standard Webhooks 1.0 (https://www.standardwebhooks.com): asked for with a job, kept, signed, delivered."""
