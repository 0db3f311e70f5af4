"""Split brain through a network that is cut: refused, shown on both hosts, resolved each way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import lablib
import pytest
from hosts.scene import TRACK, Scene, make_bytes, write_device
from waiting import wait_until


@pytest.fixture
def scene(shared_lab: lablib.Lab, faults: Path) -> Iterator[Scene]:
    scene = Scene(shared_lab, faults, "split", "source", "api")
    yield scene
    shared_lab.heal()
    scene.end()


def state(host: lablib.Host, name: str) -> str:
    """As one sees it who asks why, which asks the other host too."""
    return str(host.call("pair.why", pair=name)["why"]["state"])


def part(scene: Scene, device: str, here: bytes, there: bytes) -> None:
    """Nothing gets through; the source goes on, the destination is freed and used; then the network is back."""
    alpha, beta, name = scene.alpha, scene.beta, scene.name
    scene.lab.reset()
    write_device(device, 0, here * TRACK)
    wait_until(lambda: state(alpha, name) == "Partitioned", "the path is lost")
    beta.call("pair.delete", pair=name, half=True)
    write_device(beta.call("attach", volume=name)["device"], TRACK, there * TRACK)
    beta.call("detach", volume=name)
    scene.lab.heal()
    wait_until(lambda: state(alpha, name) == "Split", "alpha finds that both were written")


def test_split_brain_is_refused_shown_and_resolved_each_way(scene: Scene) -> None:
    alpha, beta, name = scene.alpha, scene.beta, scene.name
    scene.make_volumes(alpha=make_bytes())
    scene.create("destination")
    scene.wait_synchronized()
    device = alpha.call("attach", volume=name)["device"]
    for discard, here, there in (("destination", b"A", b"B"), ("source", b"C", b"D")):
        part(scene, device, here, there)
        before = {"source": alpha.image(name).read_bytes(), "destination": beta.image(name).read_bytes()}
        assert (before["source"][:1], before["destination"][TRACK : TRACK + 1]) == (here, there)
        for host in (alpha, beta):
            wait_until(lambda host=host: state(host, name) == "Split", f"{host.name} shows it too")  # type: ignore[misc]
            sides = host.call("pair.show", pair=name)["pair"]["sides"]
            assert (sides["source"]["owed"], sides["destination"]["ended"]) == (1, True)
            told = host.run("pathctl", "status").stdout
            assert "    alpha:split: last written" in told
            assert "    beta:split: last written" in told
        if discard == "source":
            alpha.call("detach", volume=name)
        alpha.run("pathctl", "pair", "resolve", name, "--discard", discard, "--yes")
        scene.wait_synchronized()
        kept = before["destination" if discard == "source" else "source"]
        assert alpha.image(name).read_bytes() == beta.image(name).read_bytes() == kept
