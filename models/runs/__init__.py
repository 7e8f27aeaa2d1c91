"""Training runs as files: the folder that training writes, and the model that a separator's run makes.

Below both training and evaluation, neither of which imports the other.
"""
