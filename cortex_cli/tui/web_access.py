"""Who can open `cortex top --web`: visitors with a one-time token or the operator key, and no foreign web page."""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from cortex_common.errors import PermissionDenied
from cortex_common.net.trusted_hosts import TrustedHosts, trusted_hosts

_COOKIE = "cortex-top"


class WebAccess:
    """Issues one-time tokens, and recognizes the browsers that used one by a cookie.

    Args:
        key: operator key, which is accepted as a password (RFC 7617), too; None if there is none.
        host: address that the server listens on.
        public_url: URL of a proxy in front of it; None without one.
    """

    def __init__(self, key: str | None, host: str, public_url: str | None) -> None:
        self._key = key
        self._public_url = public_url
        names = [urlsplit(public_url).hostname or ""] if public_url else []
        self._trusted: TrustedHosts = trusted_hosts("top", listen=host, allowed_hosts=names)
        self._tokens: set[str] = set()
        self._sessions: set[str] = set()

    def issue_token(self) -> str:
        """Return a token for one browser."""
        token = secrets.token_urlsafe(24)
        self._tokens.add(token)
        return token

    def redeem(self, token: str) -> str | None:
        """Return a session for a token, which is invalid from now on; None if it is not valid."""
        if token not in self._tokens:
            return None
        self._tokens.remove(token)
        session = secrets.token_urlsafe(24)
        self._sessions.add(session)
        return session

    def check_page(self, request: web.Request) -> None:
        """Check that the request comes from the served page itself, or from no page.

        Raises:
            PermissionDenied: it does not.
        """
        host = request.headers.get("host", "")
        origin = request.headers.get("origin")
        self._trusted.check_host(host.encode())
        if origin is None:
            site = request.headers.get("sec-fetch-site")
            self._trusted.check_page(host.encode(), None, site.encode() if site else None)
        elif origin != self._public_origin and origin.partition("://")[2] != host:
            raise PermissionDenied(f"{origin[:256]!r} is not the page of this server")

    @property
    def _public_origin(self) -> str | None:
        if self._public_url is None:
            return None
        scheme, netloc, *_ = urlsplit(self._public_url)
        return f"{scheme}://{netloc}"

    def is_known(self, request: web.Request) -> bool:
        """Return whether a request carries the cookie of a session, or the operator key."""
        if request.cookies.get(_COOKIE) in self._sessions:
            return True
        sent = password(request.headers.get("authorization", ""))
        return self._key is not None and hmac.compare_digest(sent, self._key.encode())

    def start_session(self, response: web.StreamResponse, session: str) -> None:
        """Set the cookie of a session."""
        secure = (self._public_url or "").startswith("https:")
        response.set_cookie(_COOKIE, session, httponly=True, samesite="Strict", secure=secure)

    def rejection(self) -> web.HTTPException:
        """Return the response for visitors that are not known."""
        text = (
            "open the URL that `cortex top --web` printed last; each URL is valid for one browser\n"
        )
        if self._key is None:
            return web.HTTPUnauthorized(text=text)
        return web.HTTPUnauthorized(
            text=f"the password is the operator key; or {text}",
            headers={"www-authenticate": 'Basic realm="cortex", charset="UTF-8"'},
        )


def access_middleware(access: WebAccess) -> Middleware:
    """Return the middleware that lets in nothing but the page's own requests, of known visitors."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            access.check_page(request)
        except PermissionDenied as error:
            raise web.HTTPForbidden(text=f"{error.message}\n") from error
        token = request.query.get("token")
        if request.path == "/" and token is not None:
            session = access.redeem(token)
            if session is not None:
                # Without the token, so that it is neither in the history nor in the address bar.
                response = web.Response(status=303, headers={"location": "?"})
                access.start_session(response, session)
                return response
        if not access.is_known(request):
            raise access.rejection()
        return await handler(request)

    return check


def password(header: str) -> bytes:
    """Return the password of an Authorization header (RFC 7617); empty if there is none."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() != "basic":
        return b""
    try:
        return base64.b64decode(value, validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return b""
