"""The error of a request, in the format of OpenAI's API."""

from __future__ import annotations

from starlette.responses import JSONResponse


class ApiError(ValueError):
    """A request is refused. The message is one line.

    Parameters
    ----------
    message : what is wrong, and what to do.
    status : the HTTP status.
    param : the field that is wrong; empty: none.
    code : OpenAI's code for it; empty: none.
    headers : further headers of the response.
    """

    def __init__(self, message: str, status: int = 400, param: str = "", code: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, headers or {}

    def body(self) -> dict[str, dict[str, str | None]]:
        """The JSON body of the response."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param or None, "code": self.code or None}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, self.headers)
