"""clivolume - the commands about volumes: volume, attach, detach."""

from pathlib import Path
from typing import Any

import click

from pathctl import clicommon, show

name_argument = click.argument("name", metavar="VOLUME", type=clicommon.Name("volume"))


@click.group(cls=clicommon.Group, example="pathctl volume list")
def volume() -> None:
    """Volumes on this host."""


@volume.command(
    "create",
    example="pathctl volume create home --size 10G\npathctl volume create disk --backing /dev/sdb",
)
@click.argument("name", metavar="VOLUME")
@click.option("--size", type=clicommon.Size(), help="As in 10G; may be left out if the backing exists.")
@click.option("--track-size", type=clicommon.Size(), help="The unit of validity, 4K to 4M.  [default: 64K]")
@click.option("--backing", type=click.Path(), help="An existing file or block device; it is never deleted.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
@clicommon.json_option
def volume_create(name: str, size: int | None, track_size: int | None, backing: str | None, dry_run: bool) -> None:
    """Create a volume, by default as a sparse file.

    With --backing, a disk or file already in use becomes a volume with its content; nothing else may use it then.
    """
    path = str(Path(backing).absolute()) if backing else None
    fields = {"name": name, "size": size, "track_size": track_size, "backing": path}
    answer = clicommon.carry_out(lambda dry: clicommon.call("volume.create", **fields, dry_run=dry), True, dry_run)
    if answer:
        clicommon.tell(answer, "volume", show.volume)


@volume.command("list", example="pathctl volume list")
@clicommon.json_option
def volume_list() -> None:
    """List this host's volumes."""
    clicommon.tell(clicommon.call("volume.list"), "volumes", show.volumes)


@volume.command("show", example="pathctl volume show home")
@name_argument
@clicommon.json_option
def volume_show(name: str) -> None:
    """Show all about a volume."""
    clicommon.tell(clicommon.call("volume.show", name=name), "volume", show.volume)


@volume.command("delete", example="pathctl volume delete home --dry-run\npathctl volume delete home --yes")
@name_argument
@clicommon.careful
@clicommon.json_option
def volume_delete(name: str, yes: bool, dry_run: bool) -> None:
    """Delete a volume, and its data unless it has a --backing.

    A volume with a --backing goes back to plain use: the file or disk stays as it is.
    """
    _carry_out("volume.delete", name, yes, dry_run, "is deleted")


@volume.command("accept", example="pathctl volume accept home --dry-run\npathctl volume accept home --yes")
@name_argument
@clicommon.careful
@clicommon.json_option
def volume_accept(name: str, yes: bool, dry_run: bool) -> None:
    """Take an incomplete volume's data as it is.

    For a volume whose pair ended before all of its data was here, when the other host is gone for good: parts of it
    are older than others, or were never copied.
    """
    _carry_out("volume.accept", name, yes, dry_run, "is taken as it is")


def _carry_out(verb: str, name: str, yes: bool, dry_run: bool, done: str) -> None:
    answer = clicommon.carry_out(lambda dry: clicommon.call(verb, name=name, dry_run=dry), yes, dry_run)
    if answer:
        clicommon.tell(answer, "volume", lambda found: print(f"{found['name']} {done}"))


@click.command(cls=clicommon.Command, example="pathctl attach home")
@name_argument
@clicommon.json_option
def attach(name: str) -> None:
    """Make a block device of a volume."""
    clicommon.tell(clicommon.call("attach", volume=name), "device", print)


@click.command(cls=clicommon.Command, example="pathctl detach home")
@name_argument
@clicommon.json_option
def detach(name: str) -> None:
    """Remove a volume's block device; refused while anybody uses it."""

    def told(found: dict[str, Any]) -> None:
        print(f"{found['name']} is detached")

    clicommon.tell(clicommon.call("detach", volume=name), "volume", told)
