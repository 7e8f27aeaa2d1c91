"""The housekeeping process: recovery of lost jobs, expiry, and delivery of webhooks."""
