"""The classes that targets can be asked for by name."""
