"""Jobs in Redis: their records, the fair queue, RQ queues and events. No HTTP."""
