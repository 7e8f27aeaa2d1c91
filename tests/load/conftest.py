"""The small model of the end-to-end tests."""

from tests.end_to_end.conftest import small_model

__all__ = ["small_model"]
