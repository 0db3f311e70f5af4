"""completion - what the shell's Tab key offers: the scripts for bash, zsh and fish, and names asked of pathctld.

The scripts run `pathctl` itself with _PATHCTL_COMPLETE set (see click.shell_completion).  Names come from one short
`status`; where pathctld does not answer in time, there are none, without a word.  bash cuts words at a colon, so for
HOST:NAME its script hands over the whole line and takes off what stands before the last colon.
"""

import os
from typing import Any

import click
from click import shell_completion

from pathctl import client, errors

LIMIT_S = 1.0

_BASH = """\
_pathctl_completion() {
    local IFS=$'\\n' type value word=${COMP_LINE:0:COMP_POINT}
    word=${word##*[[:space:]]}
    COMPREPLY=()
    while IFS=, read -r type value; do
        case $type in
        file) compopt -o default ;;
        dir) compopt -o dirnames ;;
        plain)
            [[ $value != *: ]] || compopt -o nospace
            if [[ $word == *:* && $COMP_WORDBREAKS == *:* ]]; then
                value=${value#"${word%"${word##*:}"}"}
            fi
            COMPREPLY+=("$value")
            ;;
        esac
    done < <(COMP_LINE=${COMP_LINE:0:COMP_POINT} _PATHCTL_COMPLETE=bash_complete "$1" 2>/dev/null)
}

complete -o nosort -F _pathctl_completion pathctl
"""


class BashComplete(shell_completion.BashComplete):
    source_template = _BASH

    def source(self) -> str:
        return self.source_template  # without asking which bash there is: every one since 4.4 will do

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ.get("COMP_LINE", "")
        words = shell_completion.split_arg_string(line)
        incomplete = words.pop() if words and not line[-1:].isspace() else ""
        return words[1:], incomplete


def register() -> None:
    shell_completion.add_completion_class(BashComplete)


def script(cli: click.Command, shell: str) -> str:
    register()
    kind = shell_completion.get_completion_class(shell)
    assert kind is not None, shell
    return kind(cli, {}, "pathctl", "_PATHCTL_COMPLETE").source()


def names(root: str | None, kind: str, incomplete: str) -> list[shell_completion.CompletionItem[str]]:
    """Volumes, pairs, peers, or `end`s (NAME or HOST:NAME) that begin with `incomplete`."""
    try:
        answer = client.call(client.find_root(root), "status", limit_s=LIMIT_S)
        found = _FINDERS[kind](answer)
    except (errors.PathctlError, LookupError, TypeError):
        return []
    return [
        shell_completion.CompletionItem(name, help=said or None)
        for name, said in sorted(found.items())
        if name.startswith(incomplete) and (":" not in name[:-1] or ":" in incomplete)
    ]


def _volumes(answer: dict[str, Any]) -> dict[str, str]:
    return {volume["name"]: volume["side"] or "" for volume in answer["volumes"]}


def _peers(answer: dict[str, Any]) -> dict[str, str]:
    return {peer["name"]: peer["address"] for peer in answer["peers"]}


def _pairs(answer: dict[str, Any]) -> dict[str, str]:
    by_volume = {pair[pair["side"]]["volume"]: pair["state"] for pair in answer["pairs"]}
    return by_volume | {pair["pair"][:8]: pair[pair["side"]]["volume"] for pair in answer["pairs"]}


def _ends(answer: dict[str, Any]) -> dict[str, str]:
    """Volumes here; after HOST: those that are known of there, and those that are here, to get the same name."""
    local = _volumes(answer)
    remote = {f"{peer}:{name}": "" for peer in _peers(answer) for name in local}
    remote |= {
        f"{end['host']}:{end['volume']}": ""
        for pair in answer["pairs"]
        for end in (pair["source"], pair["destination"])
    }
    return local | {f"{peer}:": "" for peer in _peers(answer)} | remote


_FINDERS = {"volume": _volumes, "peer": _peers, "pair": _pairs, "end": _ends}
