"""The HTTP interface that jobs of every kind share."""
