"""Separation: windows, presence of targets, stems."""
