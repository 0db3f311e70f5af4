"""load - fio on an attached device, which writes at random, reads back and verifies, until the test ends it."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import lablib

LIMIT_S = 90.0  # for what should take a moment: a busy machine is no failure
FIO = "fio --name=load --rw=randwrite --ioengine=libaio --direct=1 --iodepth=8 --time_based --output-format=json"
VERIFY = "--verify=crc32c --verify_fatal=1 --verify_backlog=64 --verify_state_save=0"


@contextmanager
def running_fio(host: lablib.Host, device: str, size: int, *options: str) -> Iterator[subprocess.Popen[str]]:
    """On the first `size` bytes, until `stop_fio`; the options give at least block size, rate and run time."""
    command = [*FIO.split(), *VERIFY.split(), f"--filename={device}", f"--size={size}", *options]
    process = host.popen(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate(timeout=30)


def stop_fio(process: subprocess.Popen[str]) -> None:
    """As Ctrl-C does; it must have written, verified, and seen no error."""
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=LIMIT_S)
    job = json.loads(output[output.index("{") : output.rindex("}") + 1])["jobs"][0]
    assert job["error"] == 0, output
    assert "verify:" not in output, output
    assert job["write"]["total_ios"] > 100
    assert job["read"]["total_ios"] > 50  # what was verified
