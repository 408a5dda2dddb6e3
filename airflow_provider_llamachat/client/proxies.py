"""Finds the proxy for a host in the environment.

httpx reads the same variables, but cannot parse IPv6 ranges in ``NO_PROXY`` (``fd00::/8``) and reads ``10.0.0.0/8`` as a host name.
Each client connects to only one host, so it needs only one proxy.
"""

from __future__ import annotations

import ipaddress
import os
from urllib.parse import urlsplit
from urllib.request import getproxies


def proxy_for(base_url: str) -> tuple[str, str] | None:
    """Return the name of the variable and the URL of the proxy for a base URL, or None if no proxy is used.

    The variables ``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY`` and ``NO_PROXY`` may be in upper or lower case. ``NO_PROXY`` is a
    comma-separated list of host names (including their subdomains; with a leading dot, only subdomains), addresses and address
    ranges, each with an optional port, or ``*``.
    """
    proxies = getproxies()
    parts = urlsplit(base_url)
    scheme = next((name for name in (parts.scheme, "all") if proxies.get(name)), None)
    if scheme is None or any(_matches(entry, base_url) for entry in proxies.get("no", "").split(",")):
        return None
    url = proxies[scheme]
    variable = next(
        (name for name in os.environ if name.lower() == f"{scheme}_proxy" and os.environ[name] == url), scheme
    )
    return variable, url if "://" in url else f"http://{url}"


def _matches(entry: str, base_url: str) -> bool:
    parts = urlsplit(base_url)
    host = (parts.hostname or "").lower()
    scheme, _, name = entry.strip().lower().rpartition("://")
    if name == "*":
        return True
    if not name or scheme not in {"", "all", parts.scheme}:
        return False
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(name.strip("[]"), strict=False)
    except ValueError:
        pass  # one of them is a host name, or has a port
    name, _, port = name.rpartition(":") if name.rpartition(":")[2].isdecimal() else (name, "", "")
    if port and int(port) != (parts.port or {"https": 443, "http": 80}[parts.scheme]):
        return False
    name = name.strip("[]")
    return host == name or (bool(name) and host.endswith(name if name.startswith(".") else f".{name}"))
