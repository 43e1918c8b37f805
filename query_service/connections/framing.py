"""Where a request ends, strictly: what two servers could read in two ways is refused. Knows nothing of sockets."""

from __future__ import annotations

import h11

TINY_CHUNKS = 4096  # so many pieces of a body may be tiny; parsing them costs far more than sending them
TINY_BYTES = 32
Event = h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]


class StrictConnection(h11.Connection):
    """h11's connection of a server, without what it lets pass although RFC 9112 (6.1, 6.3) calls it an attack."""

    def __init__(self, max_incomplete_event_size: int) -> None:
        """`max_incomplete_event_size`: bytes of a request line with its headers."""
        super().__init__(h11.SERVER, max_incomplete_event_size)
        self._pieces = self._piece_bytes = 0

    def next_event(self) -> Event:
        """As h11's. Raises `h11.RemoteProtocolError` for what is not clear."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._pieces = self._piece_bytes = 0
            _check_framing(event)
        elif isinstance(event, h11.Data):
            self._pieces, self._piece_bytes = self._pieces + 1, self._piece_bytes + len(event.data)
            if self._pieces > TINY_CHUNKS and self._piece_bytes < TINY_BYTES * self._pieces:
                raise h11.RemoteProtocolError(f"the body comes in chunks of less than {TINY_BYTES} bytes")
        return event


def _check_framing(request: h11.Request) -> None:
    names = {name for name, _ in request.headers}
    if request.http_version not in (b"1.0", b"1.1"):
        raise h11.RemoteProtocolError("only HTTP/1.1 and HTTP/1.0 are spoken here", 505)
    if b"transfer-encoding" in names and b"content-length" in names:
        raise h11.RemoteProtocolError("Content-Length together with Transfer-Encoding")
    if b"transfer-encoding" in names and request.http_version == b"1.0":
        raise h11.RemoteProtocolError("Transfer-Encoding in HTTP/1.0")
