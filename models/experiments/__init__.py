"""Experiments that train and evaluate: ablations of the separator, and classes that no stage of a model has seen."""
