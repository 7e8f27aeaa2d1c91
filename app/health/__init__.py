"""What a supervisor asks: alive, ready, figures."""
