"""Every error that kalm-cache raises on purpose. Each message names what was found, what was expected and the way out.

KalmCacheError                    exit code 1
├── UsageError                    2: an option, an argument or a request that cannot be served; a ValueError, too
├── CheckpointError               1: a model that is missing, incomplete or of another kind
├── MissingExtraError             1: an optional dependency is not installed; names the extra
├── NonFiniteLogitsError          1: the model overflowed; use bfloat16 or float32
├── DeviceMemoryError             1: a device has no memory for a model, or for one passage
├── DeviceLostError               1: a device fails until its process ends
├── CorpusError                   1: the corpus as a whole cannot be read (single bad lines are RejectedLine values)
├── StoreError                    1: the store cannot be opened or written
│   ├── DamagedRecordError        1: a stored record fails its checksum
│   ├── IndexLockedError          1: another process is building in the same folder
│   └── IndexConflictError        1: another writer published into the same object store first
├── IndexNotFoundError            1: no published generation in the folder
├── UnknownIdError                1: ids that the index does not hold
├── ServiceError                  1: a service failed on a request, or what answered is no kalm-cache service
│   ├── AccessDeniedError         1: it asks for another key
│   ├── ServiceUnavailableError   1: it cannot be reached, is busy, starting or stopping; retries did not help
│   └── DeadlineExceededError     1: it did not answer in time
└── IndexMismatchError            4: the index was built with another model, codec or chunk size
"""

from __future__ import annotations


class KalmCacheError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command line returns for it."""

    exit_code = 1

    def __reduce__(self) -> tuple[object, ...]:
        """Pickled as it is, whatever its class is made with: another process may show it."""
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[KalmCacheError], args: tuple[object, ...], fields: dict[str, object]) -> KalmCacheError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(fields)
    return error


class UsageError(KalmCacheError, ValueError):
    """An option, an argument, a configuration value or a request field that cannot be served."""

    exit_code = 2


class CheckpointError(KalmCacheError):
    """A model that is missing, incomplete or of another kind."""


class MissingExtraError(KalmCacheError):
    """An optional dependency is not installed; the message names the extra."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; run: pip install 'kalm-cache[{extra}]'")


class NonFiniteLogitsError(KalmCacheError):
    """The model's logits overflowed."""


class DeviceMemoryError(KalmCacheError):
    """A device has no memory for what must be in it at once."""

    def __init__(self, device: object, what: str) -> None:
        super().__init__(f"{device} has no memory for {what}; end what else runs there, or choose another --device")


class DeviceLostError(KalmCacheError):
    """A device failed, and will fail until the process ends that uses it."""

    def __init__(self, device: object, why: object) -> None:
        first = str(why).partition("\n")[0]
        super().__init__(f"{device} failed and is lost to this process: {first}; start it again")


class CorpusError(KalmCacheError):
    """The corpus as a whole cannot be read."""


class StoreError(KalmCacheError):
    """The store cannot be opened or written."""


class DamagedRecordError(StoreError):
    """A stored record fails its checksum or does not parse."""


class IndexLockedError(StoreError):
    """Another process is building in the same folder."""


class IndexConflictError(StoreError):
    """Another writer published into the same object store first; nothing of this one was published."""


class IndexNotFoundError(KalmCacheError):
    """There is no published generation in the folder."""


class UnknownIdError(KalmCacheError):
    """Ids that the index does not hold."""

    def __init__(self, ids: list[str]) -> None:
        shown = ", ".join(repr(doc_id) for doc_id in ids[:5]) + (" …" if len(ids) > 5 else "")
        super().__init__(f"{len(ids)} of the ids are not in the index: {shown}")
        self.ids = ids


class ServiceError(KalmCacheError):
    """A service failed on a request, or what answered is no kalm-cache service."""


class AccessDeniedError(ServiceError):
    """A service asks for another key than it was given."""


class ServiceUnavailableError(ServiceError):
    """A service cannot be reached, is busy, starting or stopping; `retry_after_seconds` is what it said of that."""

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class DeadlineExceededError(ServiceError):
    """A service did not answer in the time that the client or the service itself allows."""


class IndexMismatchError(KalmCacheError):
    """The index was built with another model, codec or chunk size than the one asked for."""

    exit_code = 4
