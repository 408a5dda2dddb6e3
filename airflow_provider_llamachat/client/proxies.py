"""Which proxy the environment names for one host.

httpx reads the same variables, but fails over a range of addresses in ``NO_PROXY`` (``fd00::/8``), and takes ``10.0.0.0/8`` for a name.
Each client talks to one host only, so that the question has one answer.
"""

from __future__ import annotations

import ipaddress
import os
from urllib.parse import urlsplit
from urllib.request import getproxies


def proxy_for(base_url: str) -> tuple[str, str] | None:
    """Return the variable that names the proxy for a base URL, and the proxy's URL; None when there is none to use.

    ``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY`` and ``NO_PROXY``, in upper or lower case. ``NO_PROXY`` holds, separated by commas:
    names (with all below them; with a leading dot, only those below), addresses, ranges of addresses, each with a port or
    without, or ``*``.
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
        pass  # one of both is a name, or has a port
    name, _, port = name.rpartition(":") if name.rpartition(":")[2].isdecimal() else (name, "", "")
    if port and int(port) != (parts.port or {"https": 443, "http": 80}[parts.scheme]):
        return False
    name = name.strip("[]")
    return host == name or (bool(name) and host.endswith(name if name.startswith(".") else f".{name}"))
