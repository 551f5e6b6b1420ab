"""A connection to the explorer: how many there are, how long they wait, and what is not HTTP."""

import asyncio
from typing import cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

# Connections; of more, the one that has been idle longest is closed. Systems allow 1,024 open files.
_MAX_CONNECTIONS = 512
# Seconds for the head of a request to arrive.
_PATIENCE = 10.0
# Bytes of a refused request that are read (and dropped), so that its answer arrives.
_MAX_DROPPED = 2**29
_CLOSING = b"Connection: close\r\nContent-Length: 0\r\n\r\n"


class Connection(H11Protocol):
    """uvicorn's connection with a limited number, limited patience, and an answer to whatever is no request."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Close the oldest idle connection if there are too many, and wait for a request."""
        super().connection_made(transport)
        self._used, self._dropped, self._said = self.loop.time(), 0, False
        self._wait: asyncio.TimerHandle | None = self.loop.call_later(_PATIENCE, self._expire)
        if len(self.connections) > _MAX_CONNECTIONS:
            idle = [each for each in cast("set[Connection]", self.connections) if each.is_idle]
            oldest = min(idle, key=lambda each: each._used)
            if oldest is self:
                transport.write(b"HTTP/1.1 503 Service Unavailable\r\n" + _CLOSING)
            oldest.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        if self._wait is not None:
            self._wait.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take the next bytes of a request."""
        self._used, self._said = self.loop.time(), True
        if self._wait is None:
            self._wait = self.loop.call_later(_PATIENCE, self._expire)
        if self.is_idle:
            self._dropped += len(data)
            if self._dropped > _MAX_DROPPED:
                self.transport.abort()
                return
        super().data_received(data)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Answer a request that ends in the middle; go on answering one that is complete."""
        if self.cycle is None:
            complete = not self._said
        else:
            complete = not (self.conn.trailing_data[0] if self.is_idle else self.cycle.more_body)
        if not complete:
            self.send_400_response("The request is not complete.")
            if self.cycle is not None:
                self.cycle.disconnected = True
                self.cycle.message_event.set()
        return complete and not self.is_idle

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, unless an answer is under way."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _expire(self) -> None:
        """Close a connection on which no request has begun, or not been completed."""
        self._wait = None
        if self.is_idle and not self.transport.is_closing():
            if self.cycle is None or self.conn.trailing_data[0]:
                self.transport.write(b"HTTP/1.1 408 Request Timeout\r\n" + _CLOSING)
            self.transport.close()
