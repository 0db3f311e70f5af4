"""entryd - where the program `pathctld` begins: Ctrl-C first, everything else after.

Nothing is imported above that takes time: until `signals.allow` has run, Ctrl-C waits.
"""

from pathlib import Path

from pathctl import signals


def main() -> None:
    signals.allow()
    Path("/proc/self/comm").write_text("pathctld")  # env and python began it: `ps` and `pgrep` know it by its name
    from pathctl import daemon

    daemon.main()
