"""Nobody serves strangers by accident: with keys switched off, only this machine may ask."""

from ipaddress import ip_address

from app.settings import Settings


class ExposedWithoutKeys(Exception):
    """Other machines could use the service, and nothing would ask them for a key; the message says what to do."""


def check_exposure(settings: Settings) -> None:
    """Raises `Exposed` where keys are off on an address that others reach, and nobody said that this is meant."""
    if settings.auth == "on" or settings.open_to_all or _is_loopback(settings.host):
        return
    raise ExposedWithoutKeys(
        f"Keys are off (EARMARK_AUTH=off), and others could reach {settings.host}. Switch them on "
        "(EARMARK_AUTH=on, and make one: python -m app keys create NAME), listen on 127.0.0.1, or say that "
        "anybody may use it: EARMARK_OPEN_TO_ALL=true"
    )


def _is_loopback(host: str) -> bool:
    """By the address itself; of names only localhost counts, since any other may lead elsewhere by tomorrow."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
