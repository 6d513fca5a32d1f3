"""The page: one file, whose script and style are allowed by their digests and nothing else."""

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

STYLE = "page.css"
SCRIPTS = ("memory.js", "server.js", "settings.js", "turns.js", "conversation.js", "page.js")
"""Parts of the one script, in their order."""
INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


@cache
def page() -> tuple[str, str]:
    """The HTML, and its content security policy."""
    assets = files("qdc.serve") / "assets"

    def read(*names: str) -> str:
        return "".join((assets / name).read_text(encoding="utf-8") for name in names)

    html = read("page.html")
    html = html.replace("<style></style>", f"<style>\n{read(STYLE)}</style>")
    html = html.replace("<script></script>", f"<script>\n{read(*SCRIPTS)}</script>")
    digests = {tag: _digest(text) for tag, text in INLINE.findall(html)}
    policy = (
        "default-src 'none'; "
        f"script-src '{digests['script']}'; style-src '{digests['style']}'; "
        "connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html, policy


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
