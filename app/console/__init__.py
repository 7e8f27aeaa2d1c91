"""What the commands of operators share: the deployment that they open, and how they end when it does not answer."""
