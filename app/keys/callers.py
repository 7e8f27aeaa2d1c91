"""Callers, and the rule of which records a caller may see.

Uploads and jobs have an `owner`, the id of the key that created them; it is empty where authentication is off. A record
of another owner is answered as if it did not exist, so that responses do not reveal ids.
"""

from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from fastapi import Request
from starlette.types import Scope

from app.errors import NotFound
from app.keys.quotas import Allowance

_SCOPE = "earmark.caller"


class Owned(Protocol):
    """A record with an owner."""

    owner: str


Record = TypeVar("Record", bound=Owned)


@dataclass(frozen=True)
class Caller:
    """Sender of a request; `key_id` is empty where authentication is off, `priority` is a weight in the fair queue."""

    key_id: str = ""
    priority: int = 1
    allowance: Allowance | None = field(default=None, compare=False)  # None: no limits

    def require_owned(self, record: Record, noun: str) -> Record:
        """Return the record if this caller owns it; raise `NotFound`, as for a record that does not exist, if not.

        Every record that a client names by id must pass through here.
        """
        if record.owner != self.key_id:
            raise NotFound(f"There is no such {noun}.")
        return record


ANONYMOUS = Caller()


def set_caller(scope: Scope, caller: Caller) -> None:
    """Set the caller of a request, for the routes."""
    scope[_SCOPE] = caller


def get_caller(request: Request) -> Caller:
    """Return the caller that `set_caller` set, or the anonymous one."""
    return request.scope.get(_SCOPE, ANONYMOUS)
