"""HTTP independent of any resource: request bodies and forms as streams, problem details, ranges, OpenAPI."""
