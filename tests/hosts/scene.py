"""scene - one test's volumes on the two lab hosts, and how it asks for things: by the API or by the program."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lablib
from waiting import WAIT_S, wait_until

from pathctl import errors

MIB = 1 << 20
TRACK = 65536
SIZE = 4 * MIB
TRACKS = SIZE // TRACK
_OPTIONS = {"copy_rate_bytes_s": "--copy-rate"}


class Failed(Exception):
    """pathctl refused or failed; `text` is what the user reads, `error` the answer's fields."""

    def __init__(self, text: str, error: dict[str, Any]) -> None:
        super().__init__(text)
        self.text, self.error = text, error


class Scene:
    """Volume `name` on both hosts, alpha the source; `first` and `by` say how pairs are created."""

    def __init__(self, lab: lablib.Lab, faults: Path, name: str, first: str, by: str) -> None:
        self.alpha, self.beta = lab.host("alpha"), lab.host("beta")
        self.lab, self.name, self.first, self.by = lab, name, first, by
        self._faults = faults

    # --- asking ---

    def create(self, invalidate: str, **options: Any) -> dict[str, Any]:
        """pair create NAME beta:NAME; raises Failed."""
        fields = {"source": self.name, "destination": f"beta:{self.name}", "invalidate": invalidate}
        fields |= {"first": self.first, **options}
        if self.by == "api":
            try:
                return self.alpha.call("pair.create", **fields)
            except errors.PathctlError as error:
                raise Failed(error.message, error.as_json()) from None
        words = [fields.pop("source"), fields.pop("destination")]
        for key, value in fields.items():
            option = _OPTIONS.get(key, "--" + key.replace("_", "-"))
            words += [option] if value is True else [option, str(value)]
        result = self.alpha.run("pathctl", "pair", "create", *words, "--yes", "--json", check=False)
        answer: dict[str, Any] = json.loads(result.stdout)
        if result.returncode:
            raise Failed(result.stderr, answer["error"])
        return answer

    @contextlib.contextmanager
    def paused(self, point: str, invalidate: str, **options: Any) -> Iterator[Callable[[str], None]]:
        """While a create waits at `point`; call the given function with another point to let it go on until there."""
        with ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as stack:
            self._pause(stack, point)
            future: Future[dict[str, Any]] = pool.submit(self.create, invalidate, **options)
            self._wait_reached(point, future)

            def go_on_to(following: str) -> None:
                self._pause(stack, following)
                self._release(point)
                self._wait_reached(following, future)

            yield go_on_to
            stack.close()
            future.result(WAIT_S)

    def _pause(self, stack: contextlib.ExitStack, point: str) -> None:
        (self._faults / f"pause-create.{point}").touch()
        stack.callback(self._release, point)

    def _release(self, point: str) -> None:
        for kind in ("pause", "reached"):
            (self._faults / f"{kind}-create.{point}").unlink(missing_ok=True)

    def _wait_reached(self, point: str, future: Future[dict[str, Any]]) -> None:
        reached = self._faults / f"reached-create.{point}"
        wait_until(lambda: reached.exists() or future.done(), f"create reaches {point}")
        if future.done() and not reached.exists():
            future.result()
            raise AssertionError(f"create ended before it reached {point}")

    # --- looking ---

    def get_rows(self, host: lablib.Host) -> list[dict[str, Any]]:
        """This scene's rows of the host's configuration table."""
        rows = host.call("connection.list")["connections"]
        return [row for row in rows if row["volume"] == self.name]

    def get_plane(self, host: lablib.Host) -> dict[str, Any]:
        """What the volume's data plane says of itself, asked on its control socket."""
        code = (
            "import json, socket, sys; c = socket.socket(socket.AF_UNIX); c.connect(sys.argv[1]); "
            'c.sendall(b\'{"op": "status"}\\n\'); print(c.makefile().readline())'
        )
        answer = host.run(lablib.BIN / "python", "-c", code, host.run_file(f"{self.name}.ctl")).stdout
        status: dict[str, Any] = json.loads(answer)["ok"]
        return status

    def get_volume(self, host: lablib.Host) -> dict[str, Any]:
        volume: dict[str, Any] = host.call("volume.show", name=self.name)["volume"]
        return volume

    def has_volume(self, host: lablib.Host) -> bool:
        return any(volume["name"] == self.name for volume in host.call("volume.list")["volumes"])

    def is_synchronized(self) -> bool:
        return any(
            pair["state"] == "Synchronized" and pair["source"]["volume"] == self.name
            for pair in self.alpha.call("pair.list")["pairs"]
        )

    def wait_synchronized(self) -> None:
        wait_until(self.is_synchronized, "Synchronized")

    # --- arranging ---

    def make_volumes(self, alpha: bytes | None = b"", beta: bytes | None = b"") -> None:
        """On each host a volume with this content; None: no volume there."""
        for host, data in ((self.alpha, alpha), (self.beta, beta)):
            if data is not None:
                host.call("volume.create", name=self.name, size=SIZE)
                with host.image(self.name).open("r+b") as file:
                    file.write(data)

    def end(self) -> None:
        """Everything of this scene away, whatever became of it."""
        with contextlib.suppress(errors.PathctlError):
            self.alpha.call("detach", volume=self.name)
        with contextlib.suppress(errors.PathctlError):
            self.alpha.call("pair.delete", pair=self.name, force=True)
        for host in (self.alpha, self.beta):
            with contextlib.suppress(errors.PathctlError):
                host.call("detach", volume=self.name)
            if self.has_volume(host):
                host.call("volume.delete", name=self.name)


def read_device(device: str, offset: int, length: int) -> bytes:
    """Past the page cache."""
    done = subprocess.run(
        ["dd", f"if={device}", "iflag=direct,skip_bytes,count_bytes", f"skip={offset}", f"count={length}", "bs=64k"],
        capture_output=True,
        timeout=WAIT_S,
        check=True,
    )
    return done.stdout


def write_device(device: str, offset: int, data: bytes) -> None:
    """Past the page cache, and synced."""
    subprocess.run(
        ["dd", f"of={device}", "oflag=direct,seek_bytes", f"seek={offset}", "conv=fsync,notrunc", "bs=4k"],
        input=data,
        capture_output=True,
        timeout=WAIT_S,
        check=True,
    )


def make_bytes() -> bytes:
    return os.urandom(SIZE)
