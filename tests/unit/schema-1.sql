-- pathctl.db as of schema 1, for the test that such a file is brought up to date.

-- This host's own name and the endpoint on which its pathctld serves its peers.  One row, made by host.init.
CREATE TABLE host (
    id          INTEGER PRIMARY KEY CHECK (id = 1),
    name        TEXT NOT NULL,
    address     TEXT NOT NULL,       -- IP address; the data ports are bound to it too
    port        INTEGER NOT NULL     -- TCP port of the control traffic
) STRICT;

-- The other machines that may talk to this one, made by enrolment (peer.invite, peer.join).
CREATE TABLE peers (
    name        TEXT PRIMARY KEY,
    address     TEXT NOT NULL,
    port        INTEGER NOT NULL,
    certificate TEXT NOT NULL        -- PEM; the one certificate that this peer may show
) STRICT;

-- Open invitations.  The secret itself is only in the token.
CREATE TABLE invites (
    digest      TEXT PRIMARY KEY,    -- SHA-256 of the secret, hex
    expires_at  REAL NOT NULL,       -- seconds since the epoch
    used_by     TEXT                 -- fingerprint of the host that used it (it may repeat its join), else NULL
) STRICT;

-- The volumes of this host.
CREATE TABLE volumes (
    name        TEXT PRIMARY KEY,
    uuid        TEXT NOT NULL UNIQUE,
    size        INTEGER NOT NULL,    -- bytes
    track_size  INTEGER NOT NULL,    -- bytes
    backing     TEXT NOT NULL,       -- path of the file or block device
    managed     INTEGER NOT NULL,    -- 1: the backing was made by pathctl and goes with the volume; 0: it was given
    state       TEXT NOT NULL CHECK (state IN ('creating', 'ready', 'deleting')),
    operation   TEXT,                -- the open pair.create that made it and deletes it when undone, else NULL
    attached    INTEGER NOT NULL DEFAULT 0,  -- 1: wanted as a block device of this host
    device_path TEXT,                -- the device as last attached: what devices.Device holds, else NULL
    device_pid  INTEGER,
    device_pid_started REAL
) STRICT;

-- The connections: this host's half of each pair.  A row is reserved for its operation while 'creating'.
CREATE TABLE connections (
    pair        TEXT PRIMARY KEY,    -- UUID
    operation   TEXT NOT NULL,       -- the pair.create that made it
    volume      TEXT NOT NULL UNIQUE REFERENCES volumes (name),
    side        TEXT NOT NULL CHECK (side IN ('source', 'destination')),  -- what our volume is
    peer        TEXT NOT NULL REFERENCES peers (name),
    peer_volume TEXT NOT NULL,
    invalidated TEXT NOT NULL CHECK (invalidated IN ('source', 'destination')),
    state       TEXT NOT NULL CHECK (state IN ('creating', 'ready', 'suspended', 'deleting')),
    port        INTEGER,             -- TCP data port at the destination; NULL at a source that has not been told yet
    copy_rate_bytes_s INTEGER        -- NULL: no limit, 0: paused
) STRICT;

-- Operations that are under way here, written before their first effect.  At most one per volume: this is the claim.
CREATE TABLE journal (
    operation   TEXT PRIMARY KEY,    -- UUID
    verb        TEXT NOT NULL CHECK (verb IN ('pair.create', 'pair.delete')),
    role        TEXT NOT NULL CHECK (role IN ('coordinator', 'participant')),
    pair        TEXT NOT NULL,
    volume      TEXT NOT NULL UNIQUE,  -- ours
    peer        TEXT NOT NULL,
    peer_volume TEXT NOT NULL,
    state       TEXT NOT NULL CHECK (state IN ('forward', 'committed', 'undoing')),
    spec        TEXT NOT NULL,       -- JSON of what was asked for, as the coordinator's module defines it
    note        TEXT                 -- one sentence: what it waits for, else NULL
) STRICT;

-- The steps of an operation that were begun; the last one may or may not have been carried out, the others were.
CREATE TABLE steps (
    operation   TEXT NOT NULL REFERENCES journal (operation) ON DELETE CASCADE,
    position    INTEGER NOT NULL,
    step        TEXT NOT NULL,
    PRIMARY KEY (operation, step)
) STRICT;

-- Operations and pairs that have ended here: a step of theirs that arrives late is refused, for ever.
CREATE TABLE ended (
    id          TEXT PRIMARY KEY,    -- UUID of an operation or of a pair
    outcome     TEXT NOT NULL CHECK (outcome IN ('done', 'undone', 'deleted'))
) STRICT;
PRAGMA user_version = 1;
