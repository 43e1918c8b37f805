"""The three stores that one suite of tests runs on: memory, a folder, and S3 over HTTP, each with faults to order."""

from __future__ import annotations

import logging
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread

from kalm_cache.object_store.backend import Backend, open_backend
from kalm_cache.object_store.location import Location, parse_location
from kalm_cache.object_store.store import ObjectStore
from tests.object_store.faults import Faults, FaultyBackend, FaultyProxy

NO_PAUSES = (0.0, 0.0, 0.0)
BUCKET = "indexes"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_REGION": "us-east-1"}


@dataclass(slots=True)
class Place:
    """An empty place for one index; `store` opens it as another machine would."""

    url: str
    faults: Faults = field(default_factory=Faults)

    @property
    def location(self) -> Location:
        return parse_location(self.url)

    def store(self) -> ObjectStore:
        return ObjectStore(self.location, self.backend(), NO_PAUSES)

    def backend(self) -> Backend:
        return FaultyBackend(open_backend(self.location, create=True), self.faults)


@dataclass(slots=True)
class S3Place(Place):
    endpoint: str = ""
    proxy: str = ""  # where faults are met

    def backend(self) -> Backend:
        from obstore.store import S3Store

        bucket, _, prefix = self.url.removeprefix("s3://").partition("/")
        # a busy machine may take longer than a fault that is waited for
        timeout = "300ms" if self.faults else "30s"
        store = S3Store(
            bucket,
            prefix=prefix,
            endpoint=self.proxy if self.faults else self.endpoint,
            access_key_id="testing",
            secret_access_key="testing",
            region="us-east-1",
            client_options={"allow_http": True, "timeout": timeout},
            retry_config={"max_retries": 0},
        )
        return Backend(store)


@contextmanager
def s3_server() -> Iterator[tuple[str, int]]:
    """moto's S3 with a bucket, on a loopback port."""
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    request = urllib.request.Request(f"http://{host}:{port}/{BUCKET}", method="PUT")
    request.add_header("Authorization", "AWS4-HMAC-SHA256 Credential=testing/20260101/us-east-1/s3/aws4_request")
    urllib.request.urlopen(request).close()
    try:
        yield host, port
    finally:
        server.stop()


@contextmanager
def proxied(target: tuple[str, int], faults: Faults) -> Iterator[str]:
    """The URL of a proxy before a server."""
    with FaultyProxy(target, faults) as proxy:
        thread = Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{proxy.server_port}"
        finally:
            proxy.closing.set()
            proxy.shutdown()
            thread.join()


def file_place(folder: Path) -> Place:
    return Place(f"file://{folder}")


def memory_place() -> Place:
    return Place(f"memory://{uuid.uuid4().hex}")
