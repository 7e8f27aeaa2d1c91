"""Who asks: the caller that a request comes from, and the one rule of what it may see.

Uploads and jobs carry their `owner`, the id of the key that made them; it is empty where keys are switched off. What
another key made is answered as if it did not exist, so that ids tell nothing.
"""

from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from fastapi import Request
from starlette.types import Scope

from app.errors import NotFound
from app.keys.quotas import Allowance

_SCOPE = "earmark.caller"


class Owned(Protocol):
    """A record that belongs to whoever made it."""

    owner: str


Record = TypeVar("Record", bound=Owned)


@dataclass(frozen=True)
class Caller:
    """Who asks. `key_id` is empty for everybody where keys are switched off; `priority` is its weight in the line."""

    key_id: str = ""
    priority: int = 1
    allowance: Allowance | None = field(default=None, compare=False)  # None: no limits

    def require_owned(self, record: Record, what: str) -> Record:
        """The record, if it is this caller's; raises `NotFound` if not, in the words for a record that is not there.

        Whatever is fetched by id for a client goes through here.
        """
        if record.owner != self.key_id:
            raise NotFound(f"There is no such {what}.")
        return record


ANYBODY = Caller()


def set_caller(scope: Scope, caller: Caller) -> None:
    """Tell routes who asks."""
    scope[_SCOPE] = caller


def get_caller(request: Request) -> Caller:
    """The caller of a request, as `introduce` told it."""
    return request.scope.get(_SCOPE, ANYBODY)
