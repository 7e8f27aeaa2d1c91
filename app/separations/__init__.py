"""Separations: a mixture and targets in, stems out."""
