"""Common parts of operators' commands: opening the deployment, the exit if it does not answer, and help."""
