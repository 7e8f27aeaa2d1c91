"""Names of targets: any printable text that can be a file name; commands have the same rule
(`models.separation.stems`)."""

import unicodedata

MAX_NAME = 64  # characters


def normalize(name: str) -> str:
    """Return a name in Unicode's normal form C. Raises ValueError, with what is allowed, if it cannot be a name."""
    name = unicodedata.normalize("NFC", name)
    if not 1 <= len(name) <= MAX_NAME:
        raise ValueError(f"A name has 1 to {MAX_NAME} characters")
    if not name.isprintable():  # control and format characters, and those that change the direction of text
        raise ValueError("A name has printable characters only")
    if "/" in name or "\\" in name or name in (".", ".."):
        raise ValueError("A name has no slashes, and is not '.' or '..'")
    if name != name.strip():
        raise ValueError("A name neither begins nor ends with a space")
    return name


def fold(name: str) -> str:
    """Return what two names share that differ only in case, or in how their accents are encoded."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
