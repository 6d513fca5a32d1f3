"""Whether a request was made by the page of another site, which browsers say of their own accord.

Programs that are no browsers send neither header and are let through: they act for whoever runs
them, and no page can make them ask. Source: the Fetch metadata and Fetch standards.
"""

from starlette.datastructures import Headers

from qdc.serve.hosts import Place, parse_place

READING = frozenset(("GET", "HEAD", "OPTIONS"))
"""Methods that change nothing and queue nothing; no page can read their answers either."""
OURS = frozenset(("same-origin", "none"))
"""Values of ``Sec-Fetch-Site``: by our own page, and by nobody's, as from the address bar."""
PORTS = {"http": 80, "https": 443}


def is_foreign(method: str, headers: Headers, host: Place) -> bool:
    """Whether to refuse a request for the page that made it.

    ``Sec-Fetch-Site`` must be ours. ``Origin`` must be where the request goes, unless a browser
    says by ``Sec-Fetch-Site`` that it is: a proxy may have put another name in ``Host``.
    """
    if method in READING:
        return False
    sites, origins = headers.getlist("sec-fetch-site"), headers.getlist("origin")
    if len(sites) > 1 or len(origins) > 1 or not OURS.issuperset(sites):
        return True
    return bool(origins) and sites != ["same-origin"] and not _is_at(origins[0], host)


def _is_at(origin: str, host: Place) -> bool:
    """Whether an origin, ``http://name:port``, is this place; ``null`` is none."""
    scheme, separator, rest = origin.partition("://")
    place, usual = parse_place(rest), PORTS.get(scheme.lower())
    if not separator or place is None or usual is None:
        return False
    return (place.name, place.port or usual) == (host.name, host.port or usual)
