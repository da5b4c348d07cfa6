# SPDX-License-Identifier: Apache-2.0
"""The service as an ASGI application."""

from __future__ import annotations

import asyncio
import io
import shutil
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, File, HTTPException, Query, Request, Response, Security, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as AnyHTTPException

import scrd_fast
from scrd_fast.errors import ImageError
from scrd_fast.plots import overlay
from scrd_fast.screening.screener import Screened, Screener
from scrd_fast.serving.answers import Answer, Health, Problem, scored
from scrd_fast.serving.batching import MAX_FRAMES, Batcher, Full
from scrd_fast.serving.counters import Counters
from scrd_fast.serving.gate import HEADERS, Gate, busy, problem

__all__ = ["create_app"]

HERE = Path(__file__).parent
RECEIVED = 64  # uploads that may be on their way, beside those that wait
MEGABYTE = 2**20
_NO_ANSWER: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": text}
    for status, text in {
        400: "No form with a file.",
        401: "No token, or another one.",
        403: "Asked by another site's page, or by another name of this machine.",
        408: "Nothing came of the upload for too long.",
        413: "Too many bytes, or too many images in one file.",
        422: "The file cannot be read, or is refused.",
        503: "Too many uploads are waiting.",
    }.items()
}


class _Service:
    """What all requests share."""

    def __init__(self, screener: Screener, most_waiting: int) -> None:
        model, self.calibration = screener.model, screener.calibration
        self.sha256, self.score_name = model.fingerprint(), model.config.score
        self.counters = Counters(self.sha256, lambda: self.batcher.waiting, lambda: screener.reader.died)
        self.batcher = Batcher(screener, most_waiting=most_waiting, on_batch=self.counters.batch)
        self.scale = self.calibration.map_scale if self.calibration else None
        self.folder = tempfile.TemporaryDirectory(prefix="scrd_fast-")

    def close(self) -> None:
        self.batcher.close()
        self.folder.cleanup()

    def keep(self, upload: UploadFile) -> Path:
        """In a file, since what reads is another process; its name says nothing."""
        path = Path(self.folder.name) / uuid.uuid4().hex
        try:
            with path.open("xb") as file:
                shutil.copyfileobj(upload.file, file, MEGABYTE)
        except BaseException:  # a full disk is not to be kept full
            path.unlink(missing_ok=True)
            raise
        return path

    async def screened(self, upload: UploadFile, maps: bool) -> list[Screened]:
        """Raises `Full`."""
        path = await run_in_threadpool(self.keep, upload)
        try:
            return await asyncio.wrap_future(self.batcher.submit(path, maps=maps))
        finally:
            path.unlink(missing_ok=True)

    def answer(self, results: list[Screened], with_overlay: bool) -> Answer:
        scale = self.scale if with_overlay else None
        return Answer(
            model_sha256=self.sha256,
            calibration=self.calibration.id if self.calibration else None,
            score_name=self.score_name,
            threshold=self.calibration.threshold if self.calibration else None,
            expected_fpr=self.calibration.decision.expected_fpr if self.calibration else None,
            map_scale=self.scale,
            images=[scored(result, self.score_name, scale) for result in results],
        )


class _OneFile(Request):
    """Its form is one file and little else: small parts stay in memory, of which there could be any number."""

    def form(self, **_: Any) -> Any:
        if not self.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            raise HTTPException(400, "expected a form of the type multipart/form-data")
        return super().form(max_files=1, max_fields=8)


class _Route(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def with_limits(request: Request) -> Response:
            return await handle(_OneFile(request.scope, request.receive))

        return with_limits


def create_app(screener: Screener, *, token: str | None = None, most_bytes: int, most_waiting: int) -> FastAPI:
    """The service around a screener that keeps maps, which it closes at its end.

    Without the `token` only the page, `/healthz` and the API's description are given. Uploads have at most
    `most_bytes`, and at most `most_waiting` of them wait.
    """
    service = _Service(screener, most_waiting)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(service.close)

    app = FastAPI(
        title="scrd_fast",
        version=scrd_fast.__version__,
        description="Scores of images by a model of normal ones. Research use, not a medical device.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load their scripts from elsewhere
        redoc_url=None,
    )
    app.add_middleware(Gate, token=token, most_bytes=most_bytes, most_uploads=most_waiting + RECEIVED)  # type: ignore[arg-type]
    app.router.route_class = _Route
    app.state.service = service
    _add_page(app)
    _add_endpoints(app, service, [Security(HTTPBearer(auto_error=False))] if token else [])
    _add_problems(app)
    return app


def _add_endpoints(app: FastAPI, service: _Service, security: list[Any]) -> None:
    @app.post("/score", responses=_NO_ANSWER, dependencies=security)
    async def score(
        file: Annotated[UploadFile, File(description="An image: PNG, JPEG, TIFF, BMP, WebP, DICOM or NIfTI.")],
        overlay: Annotated[bool, Query(description="Also draw the map on the image.")] = False,
    ) -> Answer:
        """Score the image, or every image, of a file."""
        start = time.perf_counter()
        results = await service.screened(file, overlay and service.scale is not None)
        _check(results)
        answer = await run_in_threadpool(service.answer, results, overlay)
        for one in answer.images:
            service.counters.images.labels(one.status).inc()
        service.counters.seconds.observe(time.perf_counter() - start)
        return answer

    @app.get("/healthz", responses={503: {"model": Health}})
    async def healthz(response: Response) -> Health:
        """Whether uploads are taken."""
        status = service.batcher.status
        response.status_code = 200 if status == "ok" else 503
        return Health(
            status=status,
            version=scrd_fast.__version__,
            model_sha256=service.sha256,
            calibration=service.calibration.id if service.calibration else None,
        )

    @app.get("/metrics", response_class=Response, dependencies=security, responses={401: _NO_ANSWER[401]})
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(service.counters.text(), media_type=CONTENT_TYPE_LATEST)

    @app.middleware("http")
    async def count(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        if request.url.path != "/score":
            return await call_next(request)
        try:
            response = await call_next(request)
        except Exception:  # becomes an answer further out
            service.counters.requests.labels("500").inc()
            raise
        service.counters.requests.labels(str(response.status_code)).inc()
        return response


def _check(results: list[Screened]) -> None:
    """A file of which nothing could be read has no answer."""
    if len(results) > MAX_FRAMES:
        raise HTTPException(413, f"the file holds more than {MAX_FRAMES} images; `scrd-fast screen` takes any number")
    if all(result.error for result in results):
        error = results[0].error
        assert error is not None  # for the type checker
        raise error


def _add_problems(app: FastAPI) -> None:
    """Every answer that is none has the shape of `Problem`, and says nothing of the machine or of the file's header."""

    @app.exception_handler(ImageError)
    async def image(_: Request, error: ImageError) -> Response:
        return problem(422, error.code, str(error))

    @app.exception_handler(Full)
    async def full(_: Request, __: Exception) -> Response:
        return busy()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return problem(400, "request", f"{where}: {first['msg']}")

    @app.exception_handler(AnyHTTPException)
    async def other(_: Request, error: AnyHTTPException) -> Response:
        code = {404: "no-such-page", 405: "method", 408: "timeout", 413: "too-large"}.get(error.status_code, "request")
        return problem(error.status_code, code, error.detail, dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> Response:
        return problem(500, "internal", type(error).__name__, HEADERS)  # it goes out by another way than the others


def _add_page(app: FastAPI) -> None:
    """A page to drop an image on."""

    def add(path: str, content: bytes, kind: str) -> None:
        @app.get(path, include_in_schema=False)
        async def part() -> Response:
            return Response(content, media_type=kind)

    add("/", (HERE / "page.html").read_bytes(), "text/html")
    add("/page.css", (HERE / "page.css").read_bytes(), "text/css")
    add("/page.js", (HERE / "page.js").read_bytes(), "text/javascript")
    add("/scale.png", _scale(), "image/png")


def _scale() -> bytes:
    """The colours of overlays, from low to high, on gray."""
    out = io.BytesIO()
    levels = np.linspace(0.0, 1.0, 256)[None].repeat(12, axis=0)
    Image.fromarray(overlay(np.full((12, 256, 3), 0.5), levels, 0.0, 1.0)).save(out, "png")
    return out.getvalue()
