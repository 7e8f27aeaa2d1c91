"""What settings may be: their names in the environment, and rules for their values."""
