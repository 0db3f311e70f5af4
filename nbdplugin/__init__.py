"""nbdplugin - the data plane of pathctl: one volume, served by nbdkit to its host or to its peer.

Layers, each importing only what stands above it here:

    errors, geometry, bitmap                    words and arithmetic
    layout, tracks, gate, lineage, decide       pure state: what is so
    actions, core, checkpoint, transfer, requests, modes, target
                                                pure flows: what to do next
    stats, store, metafile, peer, status        the drivers' hands
    engine, link, copier, volume, service       threads that carry the flows out
    control, params, format, logs, threadstate, plugin
                                                the borders: control socket, command lines, nbdkit
"""
