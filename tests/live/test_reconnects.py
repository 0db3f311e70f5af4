"""What nbdkit holds after many reconnects of a client and of the peer: a share of the thousand of scripts/bench."""

import pytest
from bench import reconnects
from live.slowproxy import SlowProxy

WARM_UP = 15
TIMES = {reconnects.reconnect_client: 100, reconnects.reconnect_peer: 30}
GROWTH_MIB = 2.0  # 35 KiB a connection, which a thread state that is not given back costs, would be 3.4 MiB
GROWTH = 10  # connections of a session are opened when they are needed; one for each reconnect would be more


@pytest.mark.parametrize("reconnect", [reconnects.reconnect_client, reconnects.reconnect_peer])
def test_reconnects_leave_no_threads_descriptors_or_memory_behind(make_pair, reconnect):
    pair = make_pair(size=reconnects.SIZE)
    with SlowProxy(pair.destination.port, reconnects.FAST_BYTES_S) as proxy:
        pair.create("destination", port=proxy.port)
        pair.wait_synchronized()
        for number in range(WARM_UP):
            reconnect(pair, proxy, number)
        before = reconnects.measure(pair)
        for number in range(TIMES[reconnect]):
            reconnect(pair, proxy, number)
        after = reconnects.measure(pair)
    for name, held in after.items():
        told = f"{name} after {WARM_UP} and after {TIMES[reconnect]} more: {before[name]}, {held}"
        assert held.threads - before[name].threads < GROWTH, told
        assert held.descriptors - before[name].descriptors < GROWTH, told
        assert held.rss_mib - before[name].rss_mib < GROWTH_MIB, told
