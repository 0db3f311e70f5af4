"""threadstate - keeps each nbdkit worker's Python thread state alive between callbacks.

nbdkit makes and destroys a thread state around every callback, which costs a factor of six with parallel requests
(FACTS).  One extra PyGILState_Ensure per worker thread keeps the state; it must be given back when the connection
closes, or each connection leaks about 35 KiB.
"""

from __future__ import annotations

import ctypes
import threading

_python = ctypes.pythonapi
_python.PyThreadState_Get.restype = ctypes.c_void_p
_python.PyThreadState_Clear.argtypes = [ctypes.c_void_p]
_python.PyThreadState_Delete.argtypes = [ctypes.c_void_p]
_python.PyThreadState_Delete.restype = None
_python.PyThreadState_Clear.restype = None
_python.PyGILState_Release.restype = None

_local = threading.local()


class Pins:
    """The thread states kept for one connection."""

    __slots__ = ("_states",)

    def __init__(self) -> None:
        self._states: list[tuple[int, int]] = []

    def pin(self) -> None:
        """Call first in every callback of the connection; free once the thread is known."""
        if getattr(_local, "is_pinned", False):
            return
        gil = _python.PyGILState_Ensure()
        _local.is_pinned = True
        self._states.append((_python.PyThreadState_Get(), gil))

    def release(self) -> None:
        """In close(), when the connection's other threads are gone."""
        own = _python.PyThreadState_Get()
        states, self._states = self._states, []
        for state, gil in states:
            if state == own:
                _local.is_pinned = False
                _python.PyGILState_Release(gil)
            else:
                _python.PyThreadState_Clear(state)
                _python.PyThreadState_Delete(state)
