"""Webhooks, by Standard Webhooks 1.0 (https://www.standardwebhooks.com): wanted, entered, signed, delivered."""
