"""The study's web server: plain pages for readers, nothing else. A URL names an item's number and a slot
only.

Only the database says which method a picture is from, never a page, header, name or address. A reader's token
is sent once, in the personal link, and stays in a cookie from then on. Browsers send a host's cookies to all
of its ports, and keep pictures by their address: so each study has a cookie of its own, and each reader's
pictures have addresses of their own. Else two studies or readers in one browser would see each other's.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

from mmif_trt import __version__
from mmif_trt.about import RESEARCH_USE
from mmif_trt.image import SHOWN
from mmif_trt.study.config import SCALES
from mmif_trt.study.forms import form_of, number, view_of
from mmif_trt.study.gate import Gate, LimitBody, SameSite, client
from mmif_trt.study.plan import PAIRED
from mmif_trt.study.store import Page, Store, StoreFull

if TYPE_CHECKING:
    from fastapi import FastAPI, Request, Response

CONNECTIONS, PER_ADDRESS = 512, 256  # a browser opens six; a whole department may share one address
COOKIE_S = 90 * 24 * 3600
SLOTS = ("mri", "other", "left", "right")
ROLES = ("radiologist", "nuclear medicine", "resident", "other physician", "student", "other")
CHOICES = {"left": "A", "right": "B", "equal": "Equal"}  # and what their buttons say
STATIC = {
    "study.css": ("mmif_trt.study", "pages/study.css", "text/css"),
    "study.js": ("mmif_trt.study", "pages/study.js", "text/javascript"),
    "panzoom.js": ("mmif_trt.report", "panzoom.js", "text/javascript"),
    "volumes.js": ("mmif_trt.study", "pages/volumes.js", "text/javascript"),
    **{
        name: ("mmif_trt.view", name, "text/javascript")
        for name in ("niivue.js", "programs.js", "slices.js", "unpack.js", "desk.js")
    },
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; script-src 'self'; "
    "worker-src blob:; connect-src 'self'; style-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not "no-referrer": a browser then sends "Origin: null" with a form, which the gate refuses.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "X-Robots-Tag": "noindex",
    "Cache-Control": "no-store",
}
MESSAGES = {
    401: "Open the personal link that you were given.",
    403: "This page belongs to another reader.",
    404: "There is no such page.",
    405: "There is no such page.",
    409: "This item cannot be answered now: it was answered already, or an earlier one is still open.",
    413: "The request is too large.",
    422: "The answer is incomplete.",
    429: "Too many wrong links from here. Wait five minutes, then open your own link.",
    507: "The answer could not be saved: the study's disk is full or failing. Tell the organiser; what was "
    "answered before is safe.",
}


def load(template: str) -> Any:
    """A page template that escapes all values."""
    import jinja2

    loader = jinja2.PackageLoader("mmif_trt.study", "pages")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.get_template(template)


class Site:
    """Renders the pages of one study and takes what readers send; one object per server."""

    def __init__(self, store: Store) -> None:
        from fastapi import responses

        self.store = store
        self.cookie = f"reader-{store.mark()}"
        self.gate = Gate()
        self.responses = responses
        self.meta = {"volumes": False, **store.meta}  # studies of an earlier version have pictures only
        names = ("message", "welcome", "item", "done", "switch")
        self.templates = {name: load(f"{name}.html") for name in names}

    def html(self, template: str, status: int = 200, **values: Any) -> Response:
        known = {"meta": self.meta, "research_use": RESEARCH_USE, "version": __version__}
        page = self.templates[template].render(**known, **values)
        return self.responses.HTMLResponse(page, status)

    def refuse(self, status: int) -> Response:
        return self.html("message", status, text=MESSAGES.get(status, "The request cannot be answered."))

    def go(self) -> Response:
        return self.responses.RedirectResponse("/read", 303)

    def enter(self, request: Request, token: str, confirmed: bool = False) -> Response:
        """The personal link. In another reader's browser it asks first: a link that somebody sent, or a
        picture that names it, must not make one reader answer as another."""
        reader = self.gate.admit(client(request), token, self.store.reader_of)
        if isinstance(reader, str):
            return self.refuse(429 if reader == "locked" else 404)
        before = self.store.reader_of(request.cookies.get(self.cookie, ""))
        if before not in (None, reader) and not confirmed:
            return self.html("switch", token=token)
        response = self.go()
        secure = request.url.scheme == "https"
        response.set_cookie(self.cookie, token, COOKIE_S, httponly=True, samesite="lax", secure=secure)
        return response

    def reader(self, request: Request) -> int | Response:
        """The cookie's reader, or the page that says why there is none."""
        token = request.cookies.get(self.cookie)
        if token is None:
            return self.refuse(401)
        reader = self.gate.admit(client(request), token, self.store.reader_of)
        return self.refuse(429 if reader == "locked" else 401) if isinstance(reader, str) else reader

    def read(self, request: Request, back: bool) -> Response:
        reader = self.reader(request)
        if not isinstance(reader, int):
            return reader
        if not self.store.has_begun(reader):
            return self.welcome()
        following, total = self.store.next_position(reader), self.store.total(reader)
        if back and following == 0:
            return self.go()
        if following > total and not back:
            return self.html("done", total=total)
        position = following - 1 if back else following
        page = self.store.page(reader, position)
        assert page is not None
        return self.item(page, self.store.show(reader, position), back, self.store.mark(reader))

    def welcome(self, status: int = 200) -> Response:
        paired, scales = self.meta["paired"], [SCALES[name].title for name in self.meta["scales"]]
        return self.html("welcome", status, roles=ROLES, paired=paired, scales=scales)

    def item(self, page: Page, nonce: str, back: bool, mark: str) -> Response:
        scales = {name: SCALES[name] for name in self.meta["scales"]}
        given = json.loads(page.answered) if page.answered and page.kind != PAIRED else {}
        return self.html(
            "item",
            page=page,
            nonce=nonce,
            mark=mark,
            back=back,
            paired=page.kind == PAIRED,
            scales=scales,
            given=given,
            other=SHOWN[page.modality],
        )

    def begin(self, request: Request, form: dict[str, str]) -> Response:
        reader = self.reader(request)
        if not isinstance(reader, int):
            return reader
        years = number(form.get("years", ""), 0, 70)
        role = form.get("role", "")
        if (role and role not in ROLES) or (form.get("years", "") and years is None):
            return self.welcome(422)
        self.store.begin(reader, role, years)
        return self.go()

    def answer(self, request: Request, form: dict[str, str]) -> Response:
        reader = self.reader(request)
        if not isinstance(reader, int):
            return reader
        position = number(form.get("position", ""), 0, 1e6)
        page = None if position is None else self.store.page(reader, int(position))
        if page is None or not self.store.has_begun(reader):
            return self.refuse(404)
        answer = self.checked(page, form)
        if answer is None:
            return self.refuse(422)
        outcome = self.store.answer(
            reader,
            page.position,
            form.get("nonce", ""),
            answer,
            visible_s=number(form.get("visible_s", ""), 0, 1e6),
            view=view_of(form),
            revise=form.get("revise") == "1",
        )
        if outcome == "repeated":
            return self.repeated(reader, page.position, answer)
        return self.go() if outcome == "stored" else self.refuse(409)

    def repeated(self, reader: int, position: int, answer: str) -> Response:
        """After a double click the next item; a second tab on the item may have meant another answer, and is
        told which one counts."""
        page = self.store.page(reader, position)
        assert page is not None
        if page.answered == answer:
            return self.go()
        kept = CHOICES.get(page.answered) or "; ".join(
            f"{SCALES[name].title}: {value}" for name, value in json.loads(page.answered).items()
        )
        text = f"Your answer from another tab, or from before, is kept: {kept}. This one was not saved."
        if position == self.store.next_position(reader) - 1:
            text += " To change it, go to your next item and choose Previous item."
        return self.html("message", 409, text=text)

    def checked(self, page: Page, form: dict[str, str]) -> str | None:
        """The answer as stored; None if it is not one of this item's."""
        if page.kind == PAIRED:
            return form["answer"] if form.get("answer") in CHOICES else None
        given = {name: form.get(name) for name in self.meta["scales"]}
        if not all(value in ("1", "2", "3", "4", "5") for value in given.values()):
            return None
        return json.dumps({name: int(value or 0) for name, value in given.items()})

    def picture(self, request: Request, position: str, slot: str) -> Response:
        """Only for the open item and the one before it. The query names whose page asks: one that is still
        open from another reader gets nothing, and nothing is kept under an address that two readers share."""
        reader = self.reader(request)
        if not isinstance(reader, int):
            return reader
        wanted = number(position, 0, 1e6)
        following = self.store.next_position(reader)
        is_own = request.url.query in ("", self.store.mark(reader))
        if wanted is None or not is_own or slot not in SLOTS or not following - 1 <= wanted <= following:
            return self.refuse(404)
        page = self.store.page(reader, int(wanted))
        if page is None or slot not in page.pictures:
            return self.refuse(404)
        kind = "application/octet-stream" if self.meta["volumes"] else "image/png"
        response = self.responses.Response(self.store.picture(page.pictures[slot]), media_type=kind)
        # Equal headers for every picture; cached by this browser, because going back requests it again.
        if request.url.query:
            response.headers["Cache-Control"] = "private, max-age=3600"
        return response

    def static(self, name: str) -> Response:
        if name not in STATIC:
            return self.refuse(404)
        package, path, kind = STATIC[name]
        body = resources.files(package).joinpath(path).read_bytes()
        return self.responses.Response(body, media_type=kind, headers={"Cache-Control": "max-age=3600"})


def application(store: Store, names: Sequence[str] = ()) -> FastAPI:
    """The ASGI application of one study. names: of this machine, which requests may use."""
    from fastapi import FastAPI
    from fastapi.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException

    site = Site(store)
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)

    async def on_begin(request: Request) -> Any:
        return await run_in_threadpool(site.begin, request, await form_of(request))

    async def on_answer(request: Request) -> Any:
        return await run_in_threadpool(site.answer, request, await form_of(request))

    def get(path: str, call: Callable[[Request], Any]) -> None:
        app.add_route(path, call, methods=["GET"])

    app.add_route("/begin", on_begin, methods=["POST"])
    app.add_route(
        "/enter/{token}",
        lambda request: site.enter(request, request.path_params["token"], confirmed=True),
        methods=["POST"],
    )
    app.add_route("/answer", on_answer, methods=["POST"])
    get("/", lambda request: site.refuse(401))
    get("/read", lambda request: site.read(request, back=False))
    get("/back", lambda request: site.read(request, back=True))
    get("/enter/{token}", lambda request: site.enter(request, request.path_params["token"]))
    get("/picture/{position}/{slot}", lambda request: site.picture(request, **request.path_params))
    get("/static/{name}", lambda request: site.static(request.path_params["name"]))

    @app.middleware("http")
    async def secure(request: Request, call_next: Callable[[Any], Awaitable[Any]]) -> Any:
        response = await call_next(request)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    app.add_middleware(LimitBody)
    app.add_middleware(
        SameSite, names=names
    )  # outermost: nothing else sees requests that are not meant for us
    app.add_exception_handler(StoreFull, lambda request, error: site.refuse(507))
    app.add_exception_handler(
        HTTPException, lambda request, error: site.refuse(getattr(error, "status_code", 404))
    )
    return app


def serve(
    store: Store,
    host: str,
    port: int,
    *,
    certificate: str | None = None,
    key: str | None = None,
    ready: Callable[[], None] = lambda: None,
    names: Sequence[str] = (),
    proxy: str | None = None,
) -> None:
    """Serves until interrupted; calls `ready` once it accepts connections. names: see application. proxy: the
    address whose X-Forwarded-For and -Proto are trusted; None: none.

    Raises InputError if the port is taken or the certificate does not load.
    """
    from mmif_trt import http_server

    channel = http_server.listening(host, port, f"--host {host} --port {port}")
    server = http_server.server(
        application(store, names),
        proxy=proxy,
        connections=CONNECTIONS,
        per_address=PER_ADDRESS,
        certificate=certificate,
        key=key,
    )
    ready()
    server.run([channel])
