"""clihost - the commands about this host as a whole: host, peer, connection, config, backup, restore, metrics."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pathctl import clicommon, errors, show, signals

TOKEN_MOST = 1 << 16  # characters
DEFAULT_PORT = 7630  # config.DEFAULT_PORT, which takes too long to import; a test holds them together


def address_option(help_text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option("--address", required=True, metavar="ADDRESS[:PORT]", help=help_text)


@click.group(cls=clicommon.Group, example="pathctl host show")
def host() -> None:
    """This host: its name, address and key."""


@host.command("init", example="pathctl host init --name alpha --address 192.0.2.1")
@click.option("--name", required=True, help="What the other hosts call it: a-z, 0-9, '.', '_' and '-'.")
@address_option("Where the other hosts reach it.  [default port: 7630]")
@clicommon.json_option
def host_init(name: str, address: str) -> None:
    """Give this host its name, address, key and certificate.

    This comes first, on each host.  From now on pathctld listens at ADDRESS.
    """
    ip, port = clicommon.split_address(address, DEFAULT_PORT)
    clicommon.tell(clicommon.call("host.init", name=name, address=ip, port=port), "host", show.host)


@host.command("show", example="pathctl host show")
@clicommon.json_option
def host_show() -> None:
    """Show this host's name, address and key."""
    clicommon.tell(clicommon.call("host.show"), "host", show.host)


@host.command("set", example="pathctl host set --address 192.0.2.17")
@address_option("Where the other hosts reach it.  [default port: as before]")
@clicommon.json_option
def host_set(address: str) -> None:
    """Move this host to another address.

    Listens there at once and tells the peers.  A peer that is not reached now has to be told with
    `pathctl peer set` over there.
    """
    ip, port = clicommon.split_address(address, 0)
    clicommon.tell(clicommon.call("host.set", address=ip, port=port or None), "host", show.host)


@click.group(cls=clicommon.Group, example="pathctl peer list")
def peer() -> None:
    """The hosts this one knows."""


@peer.command("invite", example="pathctl peer invite")
@clicommon.json_option
def peer_invite() -> None:
    """Make a token with which one other host can join.

    Give it to `pathctl peer join` on the other host.  It is a secret, and can be used once.
    """
    clicommon.tell(clicommon.call("peer.invite"), "token", print)


@peer.command("join", example="pathctl peer join TOKEN\npathctl peer join -")
@click.argument("token")
@clicommon.json_option
def peer_join(token: str) -> None:
    """Get to know the host that made TOKEN, and be known to it.

    With - for TOKEN it is read from the standard input: `ps` and the shell's history show what is an argument.
    """
    if token == "-":
        signals.wait_readable(sys.stdin.fileno())
        token = sys.stdin.readline(TOKEN_MOST).strip()
    clicommon.tell(clicommon.call("peer.join", token=token), "peer", lambda found: show.peers([found]))


@peer.command("list", example="pathctl peer list")
@clicommon.json_option
def peer_list() -> None:
    """List the hosts this one knows."""
    clicommon.tell(clicommon.call("peer.list"), "peers", show.peers)


@peer.command("set", example="pathctl peer set beta --address 192.0.2.18")
@click.argument("name", metavar="PEER", type=clicommon.Name("peer"))
@address_option("Where it is reached.  [default port: as before]")
@click.option("--force", is_flag=True, help="Note the address although nobody answers there yet.")
@clicommon.json_option
def peer_set(name: str, address: str, force: bool) -> None:
    """Note that a peer has moved to another address.

    The host there is asked for its certificate; another host than PEER is refused.
    """
    ip, port = clicommon.split_address(address, 0)
    answer = clicommon.call("peer.set", name=name, address=ip, port=port or None, force=force)
    clicommon.tell(answer, "peer", lambda found: show.peers([found]))


@click.group(cls=clicommon.Group, example="pathctl connection list")
def connection() -> None:
    """This host's halves of pairs."""


@connection.command("list", example="pathctl connection list")
@clicommon.json_option
def connection_list() -> None:
    """List the rows of this host's configuration table."""
    clicommon.tell(clicommon.call("connection.list"), "connections", show.connections)


# -- configuration ----------------------------------------------------------------------------------------


@click.group(cls=clicommon.Group, example="pathctl config show")
def config() -> None:
    """The settings in /etc/pathctl/pathctl.toml, which pathctld reads when it starts.

    A restart of pathctld does not touch the volumes: their data planes go on and are told their new limits.
    """


reasons_option = click.option("--reasons", is_flag=True, help="Say as well what each is for.")


@config.command("show", example="pathctl config show\npathctl config show --reasons")
@reasons_option
@clicommon.json_option
def config_show(reasons: bool) -> None:
    """Show the settings that pathctld runs with, and where each comes from."""
    answer = clicommon.call("config.show")
    is_any = any(row["source"] != "default" for row in answer["settings"])
    said = answer["file"] if is_any else f"nothing is set in {answer['file']}: the defaults hold"
    tell_settings(answer, said, reasons)


@config.command("check", example="pathctl config check /etc/pathctl/pathctl.toml")
@click.argument("file", required=False, type=click.Path())
@reasons_option
@clicommon.json_option
def config_check(file: str | None, reasons: bool) -> None:
    """Check a settings file, by default this host's, without pathctld.

    A wrong key or value is named with its line and what would do.
    """
    from pathctl import settings

    path = Path(file).absolute() if file else clicommon.root() / "etc/pathctl/pathctl.toml"
    answer = settings.check(path, is_optional=file is None)
    tell_settings(answer, f"{path}: ok" if path.exists() else f"ok: there is no {path}, so the defaults hold", reasons)


def tell_settings(answer: dict[str, Any], title: str, with_reasons: bool) -> None:
    if clicommon.is_json():
        clicommon.print_json(answer)
    else:
        show.settings(title, answer["file"], answer["settings"], with_reasons)


@click.command(cls=clicommon.Command, example="pathctl backup /root/pathctl-alpha.backup")
@click.argument("file", type=click.Path())
@clicommon.json_option
def backup(file: str) -> None:
    """Write this host's configuration and keys to FILE.

    Not the data of the volumes.  FILE holds secrets: only root can read it.  An existing file is refused.
    """
    clicommon.tell(clicommon.call("backup.make", path=str(Path(file).absolute())), "contains", _contents(file))


@click.command(cls=clicommon.Command, example="pathctl restore /root/pathctl-alpha.backup --dry-run")
@click.argument("file", type=click.Path())
@clicommon.careful
@clicommon.json_option
def restore(file: str, yes: bool, dry_run: bool) -> None:
    """Put this host's configuration back as it is in FILE.

    Neither pathctld nor a volume's process may run meanwhile: end them with `pathctld --stop-all`.
    """

    def do(dry_run: bool) -> dict[str, Any]:
        import msgspec

        from pathctl import backup, config, shapes

        signals.say("interrupted" if dry_run else f"interrupted: repeat `pathctl restore {show.clean(file)}`")
        try:
            done = backup.restore(config.at(clicommon.root()), Path(file).absolute(), dry_run)
        except PermissionError as error:
            raise errors.refused(f"you may not use {error.filename}: repeat the command as root") from error
        fields: dict[str, Any] = msgspec.to_builtins(done)
        return {"plan": fields} if isinstance(done, shapes.Plan) else fields

    answer = clicommon.carry_out(do, yes, dry_run)
    if answer:
        clicommon.tell(answer, "contains", _contents(file))


def _contents(file: str) -> Any:
    return lambda found: print(show.clean(file), *map(show.clean, found), sep="\n  ")


@click.command(cls=clicommon.Command, example="pathctl metrics | grep pathctl_pair_left")
@clicommon.json_option
def metrics() -> None:
    """Print pathctld's metrics, as Prometheus reads them."""
    from pathctl import client

    text = client.metrics(clicommon.root())
    if clicommon.is_json():
        clicommon.print_json({"text": text})
    else:
        print(text, end="")
