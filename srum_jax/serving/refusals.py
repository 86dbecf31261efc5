"""What is said to a client whose request is not done: OpenAI's form, and its status codes."""

from typing import Any

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable",
}


class Refusal(Exception):
    """A request that is not done, and why, in a line.

    status: 400 a field is wrong · 401 the key is · 404 no such model or address · 405 of a method ·
    413 the body is too large · 422 what it shows or says cannot be read · 429 too many wait · 503
    not now · 500 a fault of the server. param: the field · code: for programs · retry_after:
    seconds.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ):
        super().__init__(message)
        self.status, self.param, self.code, self.retry_after = status, param, code, retry_after

    def body(self) -> dict[str, Any]:
        """As JSON says it."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else _TYPES[400])
        said = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": said}

    def headers(self) -> dict[str, str]:
        """That go with it."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
