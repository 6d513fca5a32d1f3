"""Sizes as people read them."""


def size(nbytes: int) -> str:
    """``1.968 GB (1.833 GiB)``; smaller units for smaller sizes."""
    for name, decimal, binary in (
        ("G", 10**9, 1 << 30),
        ("M", 10**6, 1 << 20),
        ("k", 10**3, 1 << 10),
    ):
        if nbytes >= decimal:
            return f"{nbytes / decimal:.4g} {name}B ({nbytes / binary:.4g} {name.upper()}iB)"
    return f"{nbytes} B"
