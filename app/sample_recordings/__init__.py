"""Recordings that the page offers to try the service with; served without authentication, like the page itself."""
