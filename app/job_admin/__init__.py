"""Jobs of all keys, for operators: list, show, cancel and delete them."""
