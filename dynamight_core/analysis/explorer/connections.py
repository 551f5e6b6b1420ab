"""A connection to the explorer: how many there are, how long they wait, and what is not HTTP."""

import asyncio
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

# Connections; of more, the one that has been idle longest is closed. Systems allow 1,024 open files.
_MAX_CONNECTIONS = 512
# Seconds for the head of a request to arrive, and for more of what is dropped.
_PATIENCE = 10.0
# Bytes of a refused request that are read (and dropped), so that its answer arrives.
_MAX_DROPPED = 2**29
_CLOSING = b"Connection: close\r\nContent-Length: 0\r\n\r\n"


class Connection(H11Protocol):
    """uvicorn's connection with a limited number, limited patience, and an answer to whatever is no request."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Close the oldest idle connection if there are too many, and wait for a request."""
        super().connection_made(cast(asyncio.Transport, _EndedByConnection(transport, self)))
        self._raw, self._ended = transport, False
        self._used, self._dropped, self._said = self.loop.time(), 0, False
        self._wait: asyncio.TimerHandle | None = self.loop.call_later(_PATIENCE, self._expire)
        if len(self.connections) > _MAX_CONNECTIONS:
            idle = [each for each in cast("set[Connection]", self.connections) if each.is_idle]
            oldest = min(idle, key=lambda each: each._used)
            if oldest is self:
                transport.write(b"HTTP/1.1 503 Service Unavailable\r\n" + _CLOSING)
            oldest._raw.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        if self._wait is not None:
            self._wait.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take the next bytes of a request, or drop them if it was refused."""
        self._used, self._said = self.loop.time(), True
        if self._wait is None:
            self._wait = self.loop.call_later(_PATIENCE, self._expire)
        if self.is_idle or self._ended:
            self._dropped += len(data)
            if self._dropped > _MAX_DROPPED:
                self.transport.abort()
                return
        if not self._ended:
            super().data_received(data)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Answer a request that ends in the middle; go on answering one that is complete."""
        if self._ended:
            return False
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

    def end(self) -> None:
        """Send no more, and close when the client has sent the rest, which is dropped.

        If a program closes a connection with unread bytes, the system tells the client of an error, which loses the
        answer before it is read.
        """
        if self._ended or self._raw.is_closing():
            return
        self._ended = True
        if self._said and (self.cycle is None or self.cycle.more_body):
            self._raw.write_eof()
            self._raw.resume_reading()
        else:
            self._raw.close()

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _expire(self) -> None:
        """Close a connection on which no request has begun, or not been completed, or the client no longer sends."""
        self._wait = None
        if self._raw.is_closing() or not (self.is_idle or self._ended):
            return
        left = self._used + _PATIENCE - self.loop.time()
        if left > 0 and (self._ended or (self.cycle is not None and self.cycle.more_body)):
            self._wait = self.loop.call_later(left, self._expire)
            return
        if not self._ended and (self.cycle is None or self.conn.trailing_data[0]):
            self._raw.write(b"HTTP/1.1 408 Request Timeout\r\n" + _CLOSING)
        self._raw.close()


class _EndedByConnection:
    """A transport whose `close` is the `end` of a connection; uvicorn closes it with its last answer.

    Parameters
    ----------
    transport
        of the connection.
    connection
        that ends.
    """

    def __init__(self, transport: asyncio.Transport, connection: Connection):
        self._transport, self._connection = transport, connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        """Leave it to the connection."""
        self._connection.end()
