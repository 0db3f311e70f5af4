"""slowproxy - a slow or silent stretch of network: a TCP proxy on loopback that passes so many bytes a second.

Its buffers are small, so that the sender feels the rate, which all connections share.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from types import TracebackType

_PIECE = 8 << 10
_TURN_S = 0.02


class SlowProxy:
    """`rate_bytes_s` may be changed while it runs; 0: nothing moves, and nobody is told."""

    def __init__(self, port: int, rate_bytes_s: int) -> None:
        self._target = port
        self.rate_bytes_s = rate_bytes_s
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _PIECE)
        self.port = int(self._listener.getsockname()[1])
        self._sockets = [self._listener]
        self._is_over = threading.Event()
        self._turn = threading.Condition()
        self._tickets, self._served = itertools.count(), 0
        self._closing = threading.Lock()

    def __enter__(self) -> SlowProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._is_over.set()
        with self._turn:
            self._turn.notify_all()
        with self._closing:
            for one in self._sockets:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()

    def cut(self) -> None:
        """Ends every connection that there is; new ones are taken as before."""
        with self._closing:
            for one in self._sockets[1:]:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while not self._is_over.is_set():
                client, _ = self._listener.accept()
                server = socket.socket()
                with self._closing:
                    self._sockets += [client, server]
                server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _PIECE)
                server.connect(("127.0.0.1", self._target))
                ended: list[socket.socket] = []
                for one, other in ((client, server), (server, client)):
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _PIECE)
                    one.settimeout(None)
                    threading.Thread(target=self._pass_on, args=(one, other, ended), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, ended: list[socket.socket]) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_PIECE):
                self._wait_turn(len(data))
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        with self._closing:  # both directions over: nobody uses either any more
            ended.append(source)
            for one in ended if len(ended) == 2 else ():
                one.close()
                if one in self._sockets:
                    self._sockets.remove(one)

    def _wait_turn(self, count: int) -> None:
        """One piece at a time, in the order in which they came, each as long as the rate makes it."""
        with self._turn:
            ticket = next(self._tickets)
            self._turn.wait_for(lambda: self._served == ticket or self._is_over.is_set())
        while count > 0 and not self._is_over.wait(min(_TURN_S, count / max(self.rate_bytes_s, 1))):
            count -= int(self.rate_bytes_s * _TURN_S)
        with self._turn:
            self._served += 1
            self._turn.notify_all()
