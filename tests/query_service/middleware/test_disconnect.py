from __future__ import annotations

import asyncio

from starlette.types import Message, Receive, Scope, Send

from query_service.middleware.disconnect import CancelOnDisconnect


def test_a_client_that_leaves_in_its_body_leaves_no_task_behind() -> None:
    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        while True:
            await receive()

    async def left_behind() -> int:
        messages: list[Message] = [
            {"type": "http.request", "body": b"x", "more_body": True},
            {"type": "http.disconnect"},
        ]
        has_left, given_up = asyncio.Event(), []

        async def receive() -> Message:
            if len(messages) == 1:
                await has_left.wait()
            return messages.pop(0)

        async def send(message: Message) -> None: ...

        cancelling = CancelOnDisconnect(endless, lambda: given_up.append(True))
        answering = asyncio.ensure_future(cancelling({"type": "http"}, receive, send))
        for _ in range(10):  # until the application waits for more
            await asyncio.sleep(0)
        has_left.set()
        await answering
        for _ in range(10):
            await asyncio.sleep(0)
        assert given_up == [True]
        return len(asyncio.all_tasks()) - 1

    assert asyncio.run(left_behind()) == 0
