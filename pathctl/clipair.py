"""clipair - the commands about pairs, but for those that follow one (cliwatch)."""

from typing import Any

import click

from pathctl import clicommon, cliwatch, show, units

side = click.Choice(["source", "destination"])
loss = click.Choice(["continue", "stop"])
LOSS = "While the path is lost: continue lets host writes go on at the source, to be copied later; stop makes them wait"
LOSS += " and then fail, so that the copies never part."
name_argument = click.argument("name", metavar="PAIR", type=clicommon.Name("pair"))


@click.group(cls=clicommon.Group, example="pathctl pair list")
def pair() -> None:
    """Pairs: a source and a destination, and the path between them.

    A PAIR is named by the volume of this host or by the beginning of its UUID.
    """


@pair.command(
    "create",
    example="pathctl pair create home beta:home --invalidate source --create --attach\n"
    "pathctl pair create work beta:work --invalidate destination --create",
)
@click.argument("source", type=clicommon.Name("end"))
@click.argument("destination", type=clicommon.Name("end"))
@click.option("--invalidate", type=side, required=True, help="Whose data is given up: it is copied from the other.")
@click.option("--first", type=side, default="source", show_default=True, help="Which connection is made first.")
@click.option("--create", is_flag=True, help="Create the volumes that do not exist.")
@click.option("--size", type=clicommon.Size(), help="Of what is created; else that of the other volume.")
@click.option("--track-size", type=clicommon.Size(), help="Of what is created; else that of the other volume, or 64K.")
@click.option("--attach", is_flag=True, help="Make a block device of the source as well.")
@click.option(
    "--force",
    is_flag=True,
    help="Invalidate the source although it is attached: what is written back of its old data destroys the good copy.",
)
@click.option("--copy-rate", type=clicommon.Rate(), default="none", help="Limit of the copy, as in 50M; 0 pauses.")
@click.option("--on-path-loss", type=loss, help=f"{LOSS}  [default: continue]")
@clicommon.careful
@clicommon.json_option
def pair_create(copy_rate: str, yes: bool, dry_run: bool, **options: Any) -> None:
    """Create a pair of SOURCE and DESTINATION and make its path ready.

    Each is NAME (here) or HOST:NAME.  The source can be used at once, also while its data is still at the
    destination.  What the invalidated volume holds is overwritten.
    """
    fields = options | {"copy_rate_bytes_s": units.parse_rate(copy_rate)}
    answer = clicommon.carry_out(lambda dry: clicommon.call("pair.create", **fields, dry_run=dry), yes, dry_run)
    if not answer:
        return
    if clicommon.is_json():
        clicommon.print_json(answer)
    else:
        _tell_created(answer)


def _tell_created(answer: clicommon.Answer) -> None:
    took = sum(step["ms"] for step in answer["steps"])
    is_new = any(step["step"] != "attach" for step in answer["steps"])
    done = f"created in {took:.0f} ms" if is_new else "exists already"
    print(f"{show.end(answer['pair']['source'])} -> {show.end(answer['pair']['destination'])} {done}")
    print(show.pair_line(answer["pair"]))
    if answer["device"]:
        print(answer["device"])


@pair.command("list", example="pathctl pair list")
@clicommon.json_option
def pair_list() -> None:
    """List this host's pairs."""
    clicommon.tell(clicommon.call("pair.list"), "pairs", show.pairs)


@pair.command("show", example="pathctl pair show home")
@name_argument
@clicommon.json_option
def pair_show(name: str) -> None:
    """Show all about a pair."""
    clicommon.tell(clicommon.call("pair.show", pair=name), "pair", show.pair)


@pair.command("suspend", example="pathctl pair suspend home")
@name_argument
@clicommon.json_option
def pair_suspend(name: str) -> None:
    """Make the path not ready; what is written from now on is owed."""
    clicommon.tell(clicommon.call("pair.suspend", pair=name), "pair", show.pair)


@pair.command("resume", example="pathctl pair resume home")
@name_argument
@clicommon.json_option
def pair_resume(name: str) -> None:
    """Make the path ready again and copy what is owed."""
    clicommon.tell(clicommon.call("pair.resume", pair=name), "pair", show.pair)


@pair.command(
    "resolve",
    example="pathctl pair resolve home --discard destination --dry-run\n"
    "pathctl pair resolve home --discard source --yes",
)
@name_argument
@click.option("--discard", type=side, required=True, help="Whose data is given up: all of it is copied from the other.")
@click.option(
    "--force",
    is_flag=True,
    help="Discard the source although it is attached: what is written back of its old data destroys the good copy.",
)
@clicommon.careful
@clicommon.json_option
def pair_resolve(name: str, discard: str, force: bool, yes: bool, dry_run: bool) -> None:
    """End a split brain: keep one side's data and copy it over the other.

    For a pair that is Split, or Refused because its two volumes went different ways.  `pair show` tells of both when
    they were last written; the side to discard is replaced as a whole, and the pair goes on.
    """
    fields = {"pair": name, "discard": discard, "force": force}
    answer = clicommon.carry_out(lambda dry: clicommon.call("pair.resolve", **fields, dry_run=dry), yes, dry_run)
    if not answer:
        return
    if clicommon.is_json():
        clicommon.print_json(answer)
    else:
        found, lost = answer["pair"], answer["resolved"]["discarded"]
        kept = "destination" if lost == "source" else "source"
        print(f"{show.end(found[lost])} is discarded: all of it is copied from {show.end(found[kept])}")
        print(show.pair_line(found))


@pair.command("delete", example="pathctl pair delete home\npathctl pair delete home --half --dry-run")
@name_argument
@click.option("--half", is_flag=True, help="Only this host's half, when the other cannot be asked.")
@click.option("--force", is_flag=True, help="Although tracks are still invalid or owed: one side is left incomplete.")
@clicommon.careful
@clicommon.json_option
def pair_delete(name: str, half: bool, force: bool, yes: bool, dry_run: bool) -> None:
    """Take the path down and forget the pair; both volumes stay."""
    fields = {"pair": name, "half": half, "force": force}
    answer = clicommon.carry_out(lambda dry: clicommon.call("pair.delete", **fields, dry_run=dry), yes, dry_run)
    if answer:
        clicommon.tell(answer, "pair", lambda found: print(_deleted(found, half)))


def _deleted(found: dict[str, Any], is_half: bool) -> str:
    said = f"pair {found['pair']} is deleted"
    return f"{said}; {found['reason']}" if is_half and found["reason"] else said


@pair.command("set", example="pathctl pair set home --copy-rate 50M\npathctl pair set home --on-path-loss stop")
@name_argument
@click.option("--copy-rate", type=clicommon.Rate(), help="As in 50M; 0 pauses, none is no limit.")
@click.option("--on-path-loss", type=loss, help=LOSS)
@clicommon.json_option
def pair_set(name: str, copy_rate: str | None, on_path_loss: str | None) -> None:
    """Change the copy's rate, or what host writes do while the path is lost."""
    fields: dict[str, Any] = {} if copy_rate is None else {"copy_rate_bytes_s": units.parse_rate(copy_rate)}
    fields |= {} if on_path_loss is None else {"on_path_loss": on_path_loss}
    if not fields:
        raise click.UsageError("Missing option '--copy-rate' or '--on-path-loss'.")
    clicommon.tell(clicommon.call("pair.set", pair=name, **fields), "pair", show.pair)


pair.add_command(cliwatch.pair_wait)
pair.add_command(cliwatch.pair_watch)
