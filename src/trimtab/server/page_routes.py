"""The page at `/`: its files, read once at start, and the headers that keep it to itself.

Nothing of a request leads to a file: the paths are the ones listed here. The page holds nothing
secret, so it is open; what it asks of the API needs the key that its user types in.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from trimtab.errors import UserError

DIRECTORY = Path(__file__).parent / "page"
_SCRIPTS = (
    "answer",
    "api",
    "chat",
    "conversation_view",
    "dashboard",
    "main",
    "svg",
    "text_flow",
    "timeline",
    "token_details",
)
FILES = {
    "/": "index.html",
    "/page/style.css": "style.css",
    "/page/icon.svg": "icon.svg",
    **{f"/page/{name}.js": f"{name}.js" for name in _SCRIPTS},
}
REPORT_PATH = "/report"
PAGE_PATHS = frozenset((*FILES, REPORT_PATH))
MAX_REPORT_BYTES = 64 << 20

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Everything comes from here, no text ever becomes markup, and no other page may frame this one.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    " require-trusted-types-for 'script'; trusted-types 'none'"
)
# A report brings its own scripts: it runs in a sandbox, an origin of its own, and calls nobody.
_REPORT_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    " sandbox allow-scripts allow-downloads allow-modals"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class _File:
    content: bytes
    headers: dict[str, str]

    async def answer(self, request: Request) -> Response:
        if self.headers["ETag"] in _tags(request.headers.get("if-none-match", "")):
            return Response(status_code=304, headers=self.headers)
        return Response(self.content, headers=self.headers)


def read_page(report: str | None = None) -> list[Route]:
    """One route for each file of the page, and one for the report, if there is one. UserError if
    that cannot be read."""
    routes = [Route(path, _read(name).answer, methods=["GET"]) for path, name in FILES.items()]
    if report is not None:
        index = _file((DIRECTORY / FILES["/"]).read_bytes().replace(_HIDDEN, _SHOWN), ".html")
        routes[0] = Route("/", index.answer, methods=["GET"])
        routes.append(Route(REPORT_PATH, _read_report(Path(report)).answer, methods=["GET"]))
    return routes


_HIDDEN, _SHOWN = b'id="report" hidden', b'id="report"'


def _read(name: str) -> _File:
    path = DIRECTORY / name
    return _file(path.read_bytes(), path.suffix)


def _file(content: bytes, suffix: str, policy: str = _POLICY) -> _File:
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {"Content-Type": _TYPES[suffix], "ETag": tag, "Content-Security-Policy": policy}
    return _File(content, {**_HEADERS, **headers})


def _read_report(path: Path) -> _File:
    try:
        if path.stat().st_size > MAX_REPORT_BYTES:
            raise UserError(f"{path}: too large for a report")
        return _file(path.read_bytes(), ".html", _REPORT_POLICY)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def _tags(header: str) -> list[str]:
    """The entity tags of If-None-Match, where a weak one is as good as a strong one."""
    return [tag.strip().removeprefix("W/") for tag in header.split(",")]
