"""The models that workers announced."""
