"""Addresses to listen at."""

import ipaddress

LOOPBACK = "127.0.0.1"


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def client_host(host: str) -> str:
    """By which a client on this machine reaches a service that listens at `host`, as it stands in a URL."""
    return LOOPBACK if host == "0.0.0.0" else f"[{host}]" if ":" in host else host
