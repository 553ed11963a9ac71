"""A TCP proxy that does to a connection what networks and servers do, once each and when told."""

import contextlib
import socket
import struct
import threading
from dataclasses import dataclass
from urllib.parse import urlsplit

CONNECT, UP, DOWN = "connect", "up", "down"
SPOILT = b"<Error><Code>BadDigest</Code><Message>something else has arrived</Message></Error>"
ANSWERS = {
    "busy": b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    "spoilt": b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b"
    % (len(SPOILT), SPOILT),
}


@dataclass(frozen=True)
class Fault:
    """What happens to the first connection that has carried so many bytes in a direction."""

    deed: str
    """Where it connects: `refuse` or one of ANSWERS; later: `cut`, `flip` (a bit) or `stall`."""
    after: int = 0
    direction: str = UP


class FaultyProxy:
    """Between a client and a server; use as a context manager."""

    def __init__(self, endpoint, faults=(), ends_after=None):
        """
        Args:
            ends_after: so many bytes sent, over all connections, and nobody is reached any more.
        """
        self._server = urlsplit(endpoint).hostname, urlsplit(endpoint).port
        self.faults, self.happened = list(faults), []
        self.sent, self._ends_after = 0, ends_after
        self.is_away = False
        """Set by a test: nobody is reached while it is."""

        self.stalled = threading.Event()
        self._over, self._lock = threading.Event(), threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self):
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _take(self, direction, carried):
        """The next fault, where it is due."""
        with self._lock:
            is_over = self._ends_after is not None and self.sent >= self._ends_after
            if is_over or self.is_away:
                return "refuse" if direction == CONNECT else "cut"
            for fault in self.faults:
                if fault.direction == direction and fault.after <= carried:
                    self.faults.remove(fault)
                    self.happened.append(fault.deed)
                    return fault.deed
        return None

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                deed = self._take(CONNECT, 0)
                if deed == "refuse":
                    _reset(client)
                elif deed is not None:
                    answer = client, ANSWERS[deed]
                    threading.Thread(target=_answer, args=answer, daemon=True).start()
                else:
                    server = socket.create_connection(self._server)
                    for pair in ((client, server, UP), (server, client, DOWN)):
                        threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source, target, direction):
        carried = 0
        with contextlib.suppress(OSError):
            while block := source.recv(65536):
                carried += len(block)
                if direction == UP:
                    with self._lock:
                        self.sent += len(block)
                deed = self._take(direction, carried)
                if deed == "cut":
                    _reset(source)
                    _reset(target)
                elif deed == "flip":
                    block = block[:-1] + bytes([block[-1] ^ 1])
                elif deed == "stall":
                    self.stalled.set()
                    self._over.wait()
                target.sendall(block)
            target.shutdown(socket.SHUT_WR)


def _reset(connection):
    """The other side is told that nobody is here, as by a closed port or a dead machine."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)  # whoever waits for it, wakes
    connection.close()


def _answer(connection, answer):
    with contextlib.suppress(OSError), connection:
        received = b""
        while b"\r\n\r\n" not in received:
            received += connection.recv(65536)
        connection.sendall(answer)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass
