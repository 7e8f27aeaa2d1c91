"""Tables of the manual in docker/ that follow from the settings and from bounds in the code."""
