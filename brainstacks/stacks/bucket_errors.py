"""What a bucket's refusals and silences mean, and what to do about them.

Of the library's own words, which may hold signed URLs, only the status and the store's code are repeated.
"""

from __future__ import annotations

import re

from brainstacks.errors import BrainstacksError, ConfigError, StorageUnwritable, Unavailable

_NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|bucket does not exist", re.IGNORECASE)
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_ASKED_FOR_CREDENTIALS = re.compile(
    r"/latest/(api|meta-data)|//metadata\.google|token request", re.IGNORECASE
)
"""What only a machine's own service is asked, when the environment has said nothing."""

_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (`aws configure export-credentials --format env` "
    "prints those of a profile)",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, the path of a key file",
    "az": "AZURE_STORAGE_ACCOUNT_KEY, or AZURE_CLIENT_ID, AZURE_CLIENT_SECRET and AZURE_TENANT_ID",
}


def missing(url: str, error: Exception, *, put: bool = False) -> ConfigError | None:
    """What to say where there is no such bucket; None where only an object is missing, which for one that was
    to be `put` is no reason."""
    if not put and _NO_BUCKET.search(str(error)) is None:
        return None
    return ConfigError(
        f"{url}: there is no such bucket; make it, name another, or look at region and endpoint"
    )


def told(url: str, error: Exception, *, write: bool) -> BrainstacksError:
    """What to say of any other error that the library reports.

    Returns:
        ConfigError: no such bucket. StorageUnwritable: not allowed, and it was to be written.
        Unavailable: everything else.
    """
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

    if (lost := missing(url, error)) is not None:
        return lost
    text = str(error)
    status, code = _STATUS.search(text), _CODE.search(text)
    answer = " ".join(found[1] for found in (status, code) if found)
    if _ASKED_FOR_CREDENTIALS.search(text):
        return Unavailable(
            f"{url}: there are no credentials; set {_CREDENTIALS[url[:2]]}, or run where the cloud gives "
            "some to the machine",
            code="registry_credentials",
        )
    if isinstance(error, PermissionDeniedError | UnauthenticatedError) or (
        status and status[1] in ("401", "403")
    ):
        doing = "write" if write else "read and list"
        message = (
            f"{url}: the credentials that the environment gives may not {doing} there ({answer}); grant them "
            "that, or set others"
        )
        if write:
            return StorageUnwritable(message)
        return Unavailable(message, code="registry_forbidden")
    why = answer or ("no answer in time" if "TimedOut" in text else "no connection, or a broken one")
    return Unavailable(
        f"{url} cannot be reached ({why}); look at the network and the endpoint. What is cached is served on",
        retry_after=5,
        code="registry_unreachable",
    )
