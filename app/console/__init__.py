"""Common parts of operators' commands: opening the deployment, and the exit if it does not answer."""
