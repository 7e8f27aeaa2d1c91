"""Catalogue of the models that workers have announced."""
