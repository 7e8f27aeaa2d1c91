"""A module that sandboxes run in tests: it executes the text that it is given."""


def main(arguments: list[str]) -> int:
    """Execute the first argument; `main` may be given, and `sys.exit` called."""
    exec(arguments[0], {"arguments": arguments})
    return 0
