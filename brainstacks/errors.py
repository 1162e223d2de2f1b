"""The tree of errors; `server.errors` maps each class to one HTTP status.

    BrainstacksError
    ├── ConfigError               a configuration names an unknown key or an impossible value
    ├── UnsupportedModel          a base without the seven projections, or that cannot be loaded
    ├── InvalidRequest            a value in a request breaks a rule                             400
    │   └── ContextTooLong        prompt + completion exceed the context                         400
    ├── NotFound                  no such ...                                                    404
    │   ├── ModelNotFound
    │   ├── DomainNotFound
    │   ├── VersionNotFound
    │   └── RecordNotFound
    ├── InvalidArtifact           an uploaded file is not a sound stack or router                400
    ├── ArtifactTooLarge          it is larger than the cap                                      413
    ├── IncompatibleArtifact      sound, but made for another base or for unknown domains        409
    ├── Conflict                  another writer was first                                       409
    ├── StaleGeneration           the generation named in If-Match is not the current one        412
    ├── StorageFull               the store has no room                                          507
    ├── StorageUnwritable         it is read-only, or is not there                               503
    ├── CorruptBlob               stored bytes do not match their digest                         503
    ├── Overloaded                the queue is full                                              429
    ├── Unavailable               starting, draining, or out of device memory                    503
    └── EngineFailure             a step failed; its requests are lost, the engine goes on       500

A message names the value, the rule and the way out. It is shown to clients: no paths, no secrets.
"""

from __future__ import annotations


class BrainstacksError(Exception):
    """Root of the tree.

    Args:
        message: what was wrong, which rule it broke, and what to do instead.
        param: the request field or option at fault, if one is.
        code: a short machine-readable name; the class's `default_code` when None.
    """

    default_code: str | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code if code is not None else self.default_code


class ConfigError(BrainstacksError):
    default_code = "invalid_config"


class UnsupportedModel(BrainstacksError):
    default_code = "unsupported_model"


class InvalidRequest(BrainstacksError):
    default_code = "invalid_value"


class ContextTooLong(InvalidRequest):
    default_code = "context_length_exceeded"


class NotFound(BrainstacksError):
    default_code = "not_found"


class ModelNotFound(NotFound):
    default_code = "model_not_found"


class DomainNotFound(NotFound):
    default_code = "domain_not_found"


class VersionNotFound(NotFound):
    default_code = "version_not_found"


class RecordNotFound(NotFound):
    default_code = "record_not_found"


class InvalidArtifact(BrainstacksError):
    default_code = "invalid_artifact"


class ArtifactTooLarge(BrainstacksError):
    default_code = "artifact_too_large"


class IncompatibleArtifact(BrainstacksError):
    default_code = "incompatible_artifact"


class Conflict(BrainstacksError):
    default_code = "conflict"


class StaleGeneration(BrainstacksError):
    default_code = "stale_generation"


class StorageFull(BrainstacksError):
    default_code = "storage_full"


class StorageUnwritable(BrainstacksError):
    default_code = "storage_unwritable"


class CorruptBlob(BrainstacksError):
    default_code = "corrupt_blob"


class RetryLater(BrainstacksError):
    """Base of the errors that pass by themselves.

    Args:
        retry_after: seconds after which a client may try again.
    """

    def __init__(
        self, message: str, *, retry_after: int = 1, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.retry_after = retry_after


class Overloaded(RetryLater):
    default_code = "overloaded"


class Unavailable(RetryLater):
    default_code = "unavailable"


class EngineFailure(BrainstacksError):
    default_code = "engine_failure"
