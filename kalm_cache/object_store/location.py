"""Where something lies in an object store: a URL without secrets. Opens no store."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from kalm_cache.errors import UsageError

SCHEMES = ("s3", "gs", "az", "file", "memory")
_SECRETS = re.compile(r"(?<=://)[^/\s@]*@|\?[^\s\"'<>]*")  # userinfo, and queries, which may be signatures


@dataclass(frozen=True, slots=True)
class Location:
    """The URL of an index or a corpus in an object store, as it may be shown."""

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def scheme(self) -> str:
        """One of `SCHEMES`."""
        return urlsplit(self.url).scheme

    @property
    def path(self) -> str:
        """What follows bucket or container; of `file://`, the path."""
        return urlsplit(self.url).path

    @property
    def parent(self) -> Location:
        """The place that this is a name in; itself, where it is a whole bucket."""
        if not self.path:
            return self
        parent = self.url.rpartition("/")[0]
        return Location(parent if parent != "file://" else "file:///")

    @property
    def name(self) -> str:
        """The path below `parent`, as a store knows it; empty of a whole bucket."""
        return unquote(self.url.rpartition("/")[2]) if self.path else ""

    @property
    def key(self) -> str:
        """The name of its folder among local copies."""
        return hashlib.sha256(self.url.encode()).hexdigest()[:32]


def is_remote(place: str) -> bool:
    """Whether an argument names a place in an object store, and not a folder or a file."""
    return "://" in place


def parse_location(url: str) -> Location:
    """The place that a URL names.

    Raises:
        UsageError: its scheme is not known, or it holds what belongs into the environment.
    """
    parts, shown = urlsplit(url), redacted(url)
    if not url.isprintable():  # bytes that are not UTF-8, too
        raise UsageError(f"{shown!a}: a URL holds printable characters only")
    if parts.scheme not in SCHEMES:
        raise UsageError(f"{shown}: the scheme is none of {', '.join(SCHEMES)}; a folder is given without one")
    if shown != url or parts.fragment:
        raise UsageError(
            f"{shown}: credentials and options stand in the environment (AWS_…, GOOGLE_…, AZURE_…), never in the URL"
        )
    if parts.scheme == "file" and (parts.netloc or parts.path in ("", "/")):
        raise UsageError(f"{shown}: give a whole path: file:///path/of/it")
    if parts.scheme in ("s3", "gs", "az") and not parts.netloc:
        raise UsageError(f"{shown}: names no bucket; {parts.scheme}://BUCKET/PATH")
    return Location(url.rstrip("/"))


def redacted(text: str) -> str:
    """A text without what URLs in it may hide: user names, passwords, signatures."""
    return _SECRETS.sub("…", text)
