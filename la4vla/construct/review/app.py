"""The review page's server: routes over a ReviewSession, and who may use them.

On a loopback address everyone on this machine is trusted. Other sites in the same browser are not: requests under
another host name or from another origin are refused. On any other address the server asks for a token, which is new at
every start; the printed address holds it and a cookie keeps it. There is no encryption: use a tunnel on networks that
you do not trust. Errors are answered as {"detail": a sentence}.
"""

from __future__ import annotations

import base64
import ipaddress
import re
import secrets
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from la4vla.construct.review.session import ReviewSession
from la4vla.construct.scores import CONFIDENCES, QUALITIES, Score
from la4vla.types import UserError

STATIC = Path(__file__).parent / "static"
COOKIE = "la4vla_review"
LOCAL_HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d+)?")
"""The names that a browser on this machine uses for it. Any other name may be an attack (DNS rebinding)."""
POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
"""Allows scripts, styles and requests of this server only. Images come as data."""

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=40, pattern=r"^[^\x00-\x1f]+$")]


class ReviewAnswer(BaseModel):
    """An annotator's answer as the page sends it."""

    model_config = ConfigDict(strict=True, extra="forbid")

    candidate: str
    annotator: Name
    quality: Annotated[int, Field(ge=QUALITIES[0], le=QUALITIES[-1])]
    confidence: Annotated[int, Field(ge=CONFIDENCES[0], le=CONFIDENCES[-1])]
    start: int
    end: int
    comment: Annotated[str, StringConstraints(max_length=2000)] = ""


class Who(BaseModel):
    """The annotator who takes an answer back."""

    model_config = ConfigDict(extra="forbid")

    annotator: Name


def make_app(session: ReviewSession, token: str) -> FastAPI:
    """The server. token: if it is not empty, requests need it and may use any host name."""
    app = FastAPI(title="la4vla review", docs_url=None, redoc_url=None, openapi_url=None)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.middleware("http")(_guard(token))
    app.add_exception_handler(UserError, _say)
    app.add_exception_handler(RequestValidationError, _say_which)

    def progress(annotator: str) -> dict[str, Any]:
        mine, everybody = session.progress(annotator)
        return {"mine": asdict(mine), "all": asdict(everybody)}

    @app.get("/")
    def page() -> Response:
        return FileResponse(STATIC / "index.html")

    @app.get("/api/annotators")
    def annotators() -> list[str]:
        return list(session.config.review.annotators)

    @app.get("/api/queue")
    def queue(annotator: Name) -> dict[str, Any]:
        return {"queue": session.queue(annotator), "progress": progress(annotator)}

    @app.get("/api/candidates/{key}")
    def candidate(key: str, annotator: Name) -> dict[str, Any]:
        return session.clip(key, annotator)

    @app.get("/api/candidates/{key}/images/{view}")
    def images(key: str, view: str) -> dict[int, str]:
        return {frame: base64.b64encode(data).decode() for frame, data in session.images(key, view).items()}

    @app.post("/api/scores")
    def put(answer: ReviewAnswer) -> dict[str, Any]:
        session.put(Score(**answer.model_dump()))
        return {"progress": progress(answer.annotator)}

    @app.post("/api/undo")
    def undo(who: Who) -> dict[str, Any]:
        score = session.undo(who.annotator)
        return {"score": None if score is None else asdict(score), "progress": progress(who.annotator)}

    return app


def serve(session: ReviewSession) -> None:
    """Serves the page until interrupted. Raises UserError if the address is not available."""
    review = session.config.review
    local = is_loopback(review.host)
    token = "" if local else secrets.token_urlsafe(24)
    family = socket.AF_INET6 if ":" in review.host else socket.AF_INET
    try:
        listener = socket.create_server((review.host, review.port), family=family)
    except OSError as error:
        raise UserError(
            f"{review.host}:{review.port}: {error.strerror}; set review.port, or review.host to an address of this "
            "machine."
        ) from error
    print(f"review page: {address(review.host, listener.getsockname()[1], token)}   (Ctrl-C ends it)", flush=True)
    server = uvicorn.Server(uvicorn.Config(make_app(session, token), log_level="warning"))
    with suppress(KeyboardInterrupt):  # uvicorn passes it on after it has closed everything
        server.run(sockets=[listener])


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to a server bound to `host`, a name or an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def address(host: str, port: int, token: str) -> str:
    """The address to open in a browser."""
    name = socket.gethostname() if host in ("0.0.0.0", "::") else host
    name = f"[{name}]" if ":" in name else name
    return f"http://{name}:{port}/" + (f"?token={token}" if token else "")


def _guard(token: str) -> Callable[[Request, Callable[[Request], Awaitable[Response]]], Awaitable[Response]]:
    """Refuses other sites' pages, and requests without the token. If there is no token, requests need a local name."""

    async def guard(request: Request, proceed: Callable[[Request], Awaitable[Response]]) -> Response:
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return _refuse("another site may not use this page; open it at its own address.")
        if not token:
            if LOCAL_HOST.fullmatch(host) is None:
                return _refuse(
                    "this page is open to localhost and 127.0.0.1 only; set review.host to open it to others."
                )
        elif not _same(request.cookies.get(COOKIE, ""), token):
            if not _same(request.query_params.get("token", ""), token):
                return _refuse("the token is missing or old; open the address that the server printed at its start.")
            entered = RedirectResponse("/", 303)
            entered.set_cookie(
                COOKIE, token, httponly=True, samesite="lax"
            )  # strict: a link in a chat would lead nowhere
            return entered
        answer = await proceed(request)
        answer.headers["Content-Security-Policy"] = POLICY
        answer.headers["X-Content-Type-Options"] = "nosniff"
        answer.headers["Referrer-Policy"] = "no-referrer"
        answer.headers["Cache-Control"] = "no-store"
        return answer

    return guard


def _same(given: str, token: str) -> bool:
    return secrets.compare_digest(given.encode(), token.encode())


def _refuse(sentence: str) -> Response:
    return JSONResponse({"detail": sentence}, 403)


async def _say(request: Request, error: Exception) -> Response:
    return JSONResponse({"detail": str(error)}, 422)


async def _say_which(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return JSONResponse({"detail": f"{'.'.join(str(part) for part in first['loc'][1:])}: {first['msg']}."}, 422)
