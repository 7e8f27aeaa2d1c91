"""Check against accidental exposure: without authentication, only this machine may reach the service."""

from ipaddress import ip_address

from app.settings import Settings


class ExposedWithoutKeys(Exception):
    """Other machines could use the service without a key; the message lists the remedies."""


def check_exposure(settings: Settings) -> None:
    """Raise `ExposedWithoutKeys` if authentication is off on a public address and `open_to_all` is not set."""
    if settings.auth == "on" or settings.open_to_all or _is_loopback(settings.host):
        return
    raise ExposedWithoutKeys(
        f"Authentication is off (EARMARK_AUTH=off), and other machines can reach {settings.host}. Switch it on "
        "(EARMARK_AUTH=on, then create a key: python -m app keys create NAME), listen on 127.0.0.1, or allow "
        "access without keys: EARMARK_OPEN_TO_ALL=true"
    )


def _is_loopback(host: str) -> bool:
    """Whether an address is a loopback address; of names only localhost, since others may resolve differently later."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
