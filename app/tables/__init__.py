"""Tables of docker/README.md that follow from the settings and from bounds in the code."""
