"""The paper's evaluation on MUSDB18."""
