"""The part of a request that asks for a webhook."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from app.http.sent import Sent
from app.outside import LONGEST_URL

Ending = Literal["succeeded", "failed", "canceled"]


class WebhookSent(Sent):
    """Whom to tell when the job is over, and of which ends; by default of all."""

    url: Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_URL)]
    events: list[Ending] = Field(default=["succeeded", "failed", "canceled"], min_length=1, max_length=3)
