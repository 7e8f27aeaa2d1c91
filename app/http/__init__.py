"""HTTP as the service speaks it, whatever it is about: bodies and forms as they stream in, problems, ranges."""
