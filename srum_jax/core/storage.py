"""What the clients of buckets raise, told apart: a storage that is gone, one that refuses."""

import re

from srum_jax.core.errors import Stopped, StorageLost, StorageRefuses, in_a_line

# Packages whose exceptions say that a request failed, not that what it brought was wrong.
_CLIENTS = (
    *("fsspec", "gcsfs", "google.auth", "google.api_core", "aiohttp", "requests"),
    *("s3fs", "aiobotocore", "botocore"),
)
_PASSING = (408, 429)  # refusals that mean: later
_NOBODY = ("DefaultCredentialsError", "NoCredentialsError")
# As tensorstore, whose errors are all ValueErrors, tells of a request.
_REQUEST = re.compile(
    r"\b(?:(ABORTED|UNAVAILABLE|DEADLINE_EXCEEDED)|PERMISSION_DENIED|UNAUTHENTICATED): "
    r".*(?:retry attempts failed|http_response_code|curl_code)",
    re.DOTALL,
)


def failure(error: BaseException, what: str = "a bucket") -> Stopped | None:
    """What ends a run instead of an `error` of a bucket's client; None for any other error.

    StorageLost where the storage gave no answer, however often its client asked; StorageRefuses
    where it refused, for want of a permission or of credentials. `what` begins the message.
    """
    refused = _refused(error)
    if refused is None:
        return None
    code = getattr(error, "code", None)
    reason = f"error {code}" if code and not refused else in_a_line(error)
    if refused:
        return StorageRefuses(
            f"{what}: the storage refuses ({reason}): see that this user may read and write there"
        )
    return StorageLost(f"{what}: the storage gives no answer ({reason}): the same command goes on")


def _refused(error: BaseException) -> bool | None:
    """Whether a storage refused, rather than gave no answer; None where it was no storage."""
    if isinstance(error, ValueError) and (request := _REQUEST.search(str(error))):
        return request[1] is None
    if isinstance(error, OSError) and str(error).startswith("Forbidden"):  # gcsfs of a 403
        return True
    if type(error) in (OSError, PermissionError) and _is_of_client(error.__cause__):
        error = error.__cause__  # s3fs makes the system's errors of botocore's
    if not _is_of_client(error):
        return None
    code, response = str(getattr(error, "code", None) or ""), getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's
        code = str(response["ResponseMetadata"]["HTTPStatusCode"])
    refused = code.startswith("4") and int(code) not in _PASSING
    return refused or type(error).__name__ in _NOBODY


def _is_of_client(error: BaseException | None) -> bool:
    return f"{type(error).__module__}.".startswith(tuple(f"{name}." for name in _CLIENTS))
