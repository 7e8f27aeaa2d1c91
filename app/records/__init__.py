"""Records that the front end and the workers share."""
