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


def find(nbdkit: str, plugin: str) -> Lane:
    """The lane beside the plugin; nbdkit is asked once for each pair of files (some hundredths of a second)."""
    file = Path(plugin).with_name(f"_lane{sysconfig.get_config_var('EXT_SUFFIX')}")
    try:
        return _ask(nbdkit, str(file), os.stat(nbdkit).st_mtime_ns, file.stat().st_mtime_ns)
    except OSError as error:
        return _without(f"{error.filename} is not there")


@functools.lru_cache(maxsize=4)
def _ask(nbdkit: str, file: str, *_: int) -> Lane:
    command = [nbdkit, f"--filter={file}", "--dump-plugin", "python"]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=PROBE_S, text=True)
    except subprocess.CalledProcessError as error:
        return _without(f"nbdkit says: {' '.join(error.stderr.split())[:300]}")
    except (OSError, subprocess.SubprocessError) as error:
        return _without(f"nbdkit cannot be asked: {error}")
    return Lane(file)


@functools.lru_cache(maxsize=4)
def _without(why: str) -> Lane:
    problem = f"volumes started from now on are slower, the compiled lane cannot be used ({why}); run scripts/setup"
    log.warning("%s", problem)
    return Lane(None, problem)
