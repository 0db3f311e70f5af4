"""lanefile - the data plane's compiled lane, where the installed nbdkit takes it as its filter.

A filter is for the very version of nbdkit that it was built with.  Without it volumes work as well, and slower: the
log says so, and so does `pathctl status`, through problems.
"""

import functools
import importlib.util
import logging
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import msgspec

from pathctl import errors

log = logging.getLogger(__name__)

PROBE_S = 30.0
_CANNOT = "volumes started from now on are slower, the compiled lane cannot be used ({}); run scripts/setup"


class Lane(msgspec.Struct, frozen=True):
    """`file` for nbdkit's --filter, or None; then `problem` is the sentence that says why."""

    file: str | None
    problem: str | None = None


def find_nbdkit() -> str:
    found = shutil.which("nbdkit")
    if found is None:
        raise errors.internal("nbdkit is not installed; run scripts/setup")
    return found


def find_plugin() -> str:
    """The plugin's file, without importing its package."""
    spec = importlib.util.find_spec("nbdplugin")
    if spec is None or not spec.submodule_search_locations:
        raise errors.internal("the package nbdplugin is not installed; run scripts/setup")
    return str(Path(next(iter(spec.submodule_search_locations))) / "plugin.py")


class _Known:
    """What was found last; None before."""

    lane: Lane | None = None


def find(nbdkit: str, plugin: str) -> Lane:
    """The lane beside the plugin.  Blocks for some hundredths of a second, once for each pair of files."""
    file = Path(plugin).with_name(f"_lane{sysconfig.get_config_var('EXT_SUFFIX')}")
    try:
        found = _ask(nbdkit, str(file), os.stat(nbdkit).st_mtime_ns, file.stat().st_mtime_ns)
    except FileNotFoundError as error:
        found = Lane(None, _CANNOT.format(f"{error.filename} is not there"))
    except (OSError, subprocess.SubprocessError) as error:  # not kept: it may go well the next time
        found = Lane(None, _CANNOT.format(error))
    if found.problem and found != _Known.lane:
        log.warning("%s", found.problem)
    _Known.lane = found
    return found


def get_problem() -> str | None:
    """Of the last volume that was started; asks nobody."""
    return _Known.lane.problem if _Known.lane else None


@functools.lru_cache(maxsize=4)
def _ask(nbdkit: str, file: str, *_: int) -> Lane:
    command = [nbdkit, f"--filter={file}", "--dump-plugin", "python"]
    done = subprocess.run(command, check=False, capture_output=True, timeout=PROBE_S, text=True)
    if done.returncode:
        return Lane(None, _CANNOT.format(f"nbdkit says: {' '.join(done.stderr.split())[:300]}"))
    return Lane(file)
