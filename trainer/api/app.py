"""From a request to a response: guard, route, handler; every error is one sentence."""
from __future__ import annotations

import errno
import logging
import traceback
from typing import Any, Callable

from ..captioning import Busy
from ..checking import Checks
from ..galleries import Galleries
from ..gallery_edit import Occupied
from ..host import Host
from ..jobs import JobQueue, NoSuchJob, NotNow
from ..output_files import OutputError
from . import bundle_routes, caption_routes, drawing_routes, farm_routes, gallery_routes, info_routes, job_routes, lora_routes
from .guard import Policy, check_login, check_origin
from .messages import ApiError, Request, Response, as_json
from .routes import Route
from .static import page_routes

log = logging.getLogger(__name__)
PREFIX = "/hotlora"


def all_routes() -> list[Route]:
    return [*info_routes.ROUTES, *gallery_routes.ROUTES, *caption_routes.ROUTES, *job_routes.ROUTES, *bundle_routes.ROUTES, *lora_routes.ROUTES, *drawing_routes.ROUTES,
            *farm_routes.ROUTES, *page_routes()]


class Api:
    """The routes of one host. `handle` and `refusal` may be called from any thread and never raise."""

    def __init__(self, host: Host, jobs: JobQueue, policy: Policy | None = None) -> None:
        self.host, self.jobs, self.policy = host, jobs, policy or Policy()
        self.galleries, self.drawings, self.checks = Galleries(host.home), jobs.drawings, Checks(host)
        self.routes = all_routes()

    def handle(self, request: Request) -> Response:
        return _told(lambda: self._answer(request))

    def refusal(self, request: Request) -> Response | None:
        """The answer to a request that may not ask, which its head alone tells: nobody without the login fills the memory with a body."""
        return _told(lambda: self._check(request))

    def body_limit(self, method: str, path: str) -> int:
        """How many bytes of a body are worth reading; what is longer is answered with an error whatever it holds."""
        found = [route for route in self.routes if route.method == method and route.pattern.fullmatch(path)]
        return found[0].limit if found and found[0].body is not None else 1000

    def _check(self, request: Request) -> None:
        check_login(self.policy, request)
        check_origin(self.policy, request)

    def _answer(self, request: Request) -> Response:
        self._check(request)
        method = "GET" if request.method == "HEAD" else request.method
        others = set()
        for route in self.routes:
            match = route.pattern.fullmatch(request.path)
            if match and route.method == method:
                known = self.jobs.events.last
                answer = route.handler(route.call(self, request, match.groupdict()))
                return answer if isinstance(answer, Response) else as_json(answer, route.status, known)
            if match:
                others.add(route.method)
        if others:
            possible = ", ".join(sorted(others))
            raise ApiError(405, f"{request.method[:20]} is not possible here, only {possible}", headers={"allow": possible})
        raise ApiError(404, f"there is nothing at {request.path[:200]}; /hotlora/api/openapi.json lists what there is")


def _told(answer: Callable[[], Response | None]) -> Response | None:
    """What it returns, or else its error as an answer."""
    try:
        response = answer()
    except ApiError as error:
        response = error.response()
    except Exception as error:
        response = _for_error(error).response()
    if response is not None:
        response.headers.setdefault("x-content-type-options", "nosniff")
    return response


def _for_error(error: Exception) -> ApiError:
    if isinstance(error, (NoSuchJob, FileNotFoundError)):
        return ApiError(404, _text(error))
    if isinstance(error, (NotNow, Occupied, Busy, FileExistsError)):
        return ApiError(409, _text(error))
    if isinstance(error, UnicodeError):
        return ApiError(400, "a text has characters that cannot be used in a file name or a file")
    if isinstance(error, OSError):
        status = {errno.ENOSPC: 507, errno.EACCES: 403, errno.EPERM: 403, errno.EROFS: 403, errno.ENAMETOOLONG: 400, errno.ELOOP: 400,
                  errno.EINVAL: 400, errno.ENOTDIR: 400, errno.EISDIR: 400}.get(error.errno)
        if status is not None:
            return ApiError(status, _text(error))
    elif isinstance(error, ValueError) and not isinstance(error, OutputError):
        return ApiError(400, _text(error))
    log.exception("a request failed")
    return ApiError(500, f"HotLoRA failed here ({type(error).__name__}: {_text(error)}); please report it with the details",
                    "".join(traceback.format_exception(error)))


def _text(error: Any) -> str:
    if isinstance(error, OSError) and not isinstance(error, OutputError) and error.strerror:
        return f"{error.filename or 'a file'} cannot be used: {error.strerror}"
    return str(error).strip().replace("\n", " ")[:1000] or type(error).__name__
