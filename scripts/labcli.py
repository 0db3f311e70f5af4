"""labcli - the command line of the lab; scripts/lab runs it with the virtual environment's Python.

    scripts/lab up | down | status
    scripts/lab cut [HOST]                    drop everything between the hosts, or what that one sends
    scripts/lab reset                         answer whatever they send with a TCP reset
    scripts/lab slow RATE                     let no more through than this, 8mbit
    scripts/lab heal                          the end of cut, reset and slow
    scripts/lab exec HOST -- COMMAND...       run it on that host (pathctl is on its PATH)
    scripts/lab start | stop HOST             that host's pathctld
    scripts/lab kill | freeze | thaw HOST [WHAT]
                                              its pathctld, or nbdkit:VOLUME or device:VOLUME

PATHCTL_LAB names the lab (default: lab), so that several can live side by side.
"""

import argparse
import os
import signal
import sys

import lablib

from pathctl import errors

_SIGNALS = {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP, "thaw": signal.SIGCONT}


def main() -> int:
    arguments = _parse(sys.argv[1:])
    try:
        _carry_out(lablib.Lab(), arguments)
    except (lablib.LabError, errors.PathctlError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    return 0


def _parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/lab",
        usage="scripts/lab COMMAND [HOST] [-- COMMAND...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in ("up", "down", "status", "cut", "reset", "slow", "heal"):
        commands.add_parser(name)
    for name in ("start", "stop", "exec", *_SIGNALS):
        commands.add_parser(name).add_argument("host")
    for name in _SIGNALS:
        commands.choices[name].add_argument("what", nargs="?", default="pathctld")
    commands.choices["cut"].add_argument("host", nargs="?")
    commands.choices["slow"].add_argument("rate")
    commands.choices["exec"].add_argument("argv", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    return parser.parse_args(words)


def _carry_out(lab: lablib.Lab, arguments: argparse.Namespace) -> None:
    command: str = arguments.command
    if command == "exec":
        _exec(lab.host(arguments.host), arguments.argv)
    elif command in ("start", "stop"):
        getattr(lab.host(arguments.host), command)()
    elif command in _SIGNALS:
        _signal(lab.host(arguments.host), arguments.what, _SIGNALS[command])
    elif command == "cut":
        lab.cut(arguments.host)
    elif command == "slow":
        lab.slow_down(arguments.rate)
    elif command == "status":
        _print_status(lab)
    else:
        getattr(lab, command)()


def _signal(host: lablib.Host, what: str, number: signal.Signals) -> None:
    pids = host.find(what)
    if not pids:
        raise lablib.LabError(f"{host.name} has no {what} that runs")
    lablib.send(pids, number)


def _exec(host: lablib.Host, words: list[str]) -> None:
    command = words[1:] if words[:1] == ["--"] else words
    if not command:
        raise lablib.LabError("exec needs a command: scripts/lab exec HOST -- COMMAND...")
    argv = host.argv(*command)
    os.execvpe(argv[0], argv, host.environment())


def _print_status(lab: lablib.Lab) -> None:
    if not lab.folder.exists():
        raise lablib.LabError(f"lab {lab.name} is not up: scripts/lab up")
    for host in lab.hosts.values():
        pids = ", ".join(map(str, host.pids()))
        state = f"pathctld {pids}, {'answers' if host.answers() else 'does not answer'}" if pids else "no pathctld"
        print(f"{host.name}  {host.address}  {host.root}  {state}")
    print(f"network {'not whole' if lab.is_cut() else 'whole'}")


if __name__ == "__main__":
    sys.exit(main())
