"""What is not done, in the form that the API has for errors: {"error": {"message", "type", "param", "code"}}."""

from typing import Any

from assay.errors import AssayError


class Refused(AssayError):
    """A request that is not done: an HTTP status, and the fields of an error of the API."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    @property
    def kind(self) -> str:
        named = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
        return named.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")

    def body(self) -> dict[str, Any]:
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}


def no_model(name: str, served: str) -> Refused:
    """The problem of a model that is not served."""
    words = f"The model {name[:200]!r} does not exist here; this server has {served!r}."
    return Refused(404, words, "model", "model_not_found")
