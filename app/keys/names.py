"""Names of the owners of records and of usage, for operators: of keys that are revoked only the id is left."""

from app.keys.repository import KeyRepository


class KeyNames:
    """The names as they are when this is made."""

    def __init__(self, keys: KeyRepository) -> None:
        self._names = {key.id: key.name for key in keys.list()}
        self._unreadable = frozenset(keys.unreadable_ids())

    def ids(self, name: str) -> list[str]:
        """Return the ids of the keys with this name, which need not be unique."""
        return [key_id for key_id, of_key in self._names.items() if of_key == name]

    def of(self, owner: str) -> str:
        """Return the name of a key by its id; in brackets why there is none."""
        if not owner:
            return "(no key)"
        return self._names.get(owner, "(damaged)" if owner in self._unreadable else "(revoked)")
