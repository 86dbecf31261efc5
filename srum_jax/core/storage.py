"""What the clients of buckets raise, told apart: a storage that is gone, one that refuses."""

from srum_jax.core.errors import BadInput, Stopped, StorageLost, in_a_line

# Packages whose exceptions say that a request failed, not that what it brought was wrong.
_CLIENTS = (
    *("fsspec", "gcsfs", "google.auth", "google.api_core", "aiohttp", "requests"),
    *("s3fs", "aiobotocore", "botocore"),
)
_PASSING = (408, 429)  # refusals that mean: later


def failure(error: BaseException, what: str = "a bucket") -> Stopped | None:
    """What ends a run instead of an `error` of a bucket's client; None for any other error.

    StorageLost where the storage gave no answer, however often its client asked; BadInput where it
    refused, for want of a permission or of credentials. `what` begins the message.
    """
    module = type(error).__module__ + "."
    client = module.startswith(tuple(f"{name}." for name in _CLIENTS))
    forbidden = isinstance(error, OSError) and str(error).startswith("Forbidden")  # gcsfs of a 403
    if not client and not forbidden:
        return None
    code = str(getattr(error, "code", "") or "")
    refused = code.startswith("4") and int(code) not in _PASSING
    reason = in_a_line(error)
    if forbidden or refused or type(error).__name__ == "DefaultCredentialsError":
        return BadInput(
            f"{what}: the storage refuses ({reason}): see that this user may read and write there"
        )
    reason = f"error {code}" if code else reason
    return StorageLost(f"{what}: the storage gives no answer ({reason}): the same command goes on")
