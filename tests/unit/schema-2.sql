-- pathctl.db as of schema 2, for the test that such a file is brought up to date.

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

-- What has changed here: configuration (by the triggers below), states and the rest (Database.record).  The newest
-- `events.keep` stay.
CREATE TABLE events (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used twice
    at          REAL NOT NULL,       -- seconds since the epoch
    kind        TEXT NOT NULL,       -- one of KINDS
    volume      TEXT,                -- ours
    pair        TEXT,                -- UUID
    peer        TEXT,
    actor       TEXT NOT NULL,       -- who asked: 'uid 0 (root)', 'host beta', 'pathctld'
    before      TEXT,
    after       TEXT,
    cause       TEXT,                -- the verb that was asked for, or why it happened by itself
    message     TEXT NOT NULL        -- one sentence
) STRICT;
CREATE INDEX events_of_pair ON events (pair, id);
CREATE TRIGGER events_bound AFTER INSERT ON events BEGIN
    DELETE FROM events WHERE id <= NEW.id - pathctl_keep();
END;

-- The state of each pair as last recorded: the event itself may have been dropped since.
CREATE TABLE states (
    pair        TEXT PRIMARY KEY,
    state       TEXT NOT NULL,
    since       REAL NOT NULL        -- seconds since the epoch
) STRICT;
CREATE TRIGGER states_known AFTER INSERT ON events WHEN NEW.kind = 'pair.state' BEGIN
    INSERT INTO states VALUES (NEW.pair, NEW.after, NEW.at)
        ON CONFLICT (pair) DO UPDATE SET state = excluded.state, since = excluded.since;
END;
CREATE TRIGGER states_over AFTER DELETE ON connections BEGIN
    DELETE FROM states WHERE pair = OLD.pair;
END;
CREATE TRIGGER host_created AFTER INSERT ON host BEGIN
    INSERT INTO events (kind, message, after, at, actor, cause)
    VALUES ('host.created', 'this host is ' || NEW.name || ' at ' || NEW.address || ':' || NEW.port, NEW.address || ':' || NEW.port, pathctl_now(), pathctl_actor(), pathctl_cause());
END;

CREATE TRIGGER host_changed AFTER UPDATE ON host BEGIN
    INSERT INTO events (kind, message, before, after, at, actor, cause)
    VALUES ('host.changed', 'this host moved from ' || OLD.address || ':' || OLD.port || ' to ' || NEW.address || ':' || NEW.port, OLD.address || ':' || OLD.port, NEW.address || ':' || NEW.port, pathctl_now(), pathctl_actor(), pathctl_cause());
END;

CREATE TRIGGER peer_added AFTER INSERT ON peers BEGIN
    INSERT INTO events (kind, message, peer, after, at, actor, cause)
    VALUES ('peer.added', 'host ' || NEW.name || ' at ' || NEW.address || ':' || NEW.port || ' is a peer now', NEW.name, NEW.address || ':' || NEW.port, pathctl_now(), pathctl_actor(), pathctl_cause());
END;

CREATE TRIGGER peer_changed AFTER UPDATE ON peers WHEN NEW.address || ':' || NEW.port <> OLD.address || ':' || OLD.port BEGIN
    INSERT INTO events (kind, message, peer, before, after, at, actor, cause)
    VALUES ('peer.changed', 'peer ' || NEW.name || ' moved from ' || OLD.address || ':' || OLD.port || ' to ' || NEW.address || ':' || NEW.port, NEW.name, OLD.address || ':' || OLD.port, NEW.address || ':' || NEW.port, pathctl_now(), pathctl_actor(), pathctl_cause());
END;

CREATE TRIGGER peer_removed AFTER DELETE ON peers BEGIN
    INSERT INTO events (kind, message, peer, before, at, actor, cause)
    VALUES ('peer.removed', 'host ' || OLD.name || ' is no peer any more', OLD.name, OLD.address || ':' || OLD.port, pathctl_now(), pathctl_actor(), pathctl_cause());
END;

CREATE TRIGGER volume_created AFTER INSERT ON volumes BEGIN
    INSERT INTO events (kind, message, volume, after, at, actor, cause)
    VALUES ('volume.created', 'volume ' || NEW.name || ' of ' || NEW.size || ' bytes over ' || NEW.backing, NEW.name, NEW.state, pathctl_now(), pathctl_actor(), pathctl_cause());
END;

CREATE TRIGGER volume_state AFTER UPDATE OF state ON volumes WHEN NEW.state <> OLD.state BEGIN
    INSERT INTO events (kind, message, volume, before, after, at, actor, cause)
    VALUES ('volume.' || NEW.state, 'volume ' || NEW.name || ' is ' || NEW.state, NEW.name, OLD.state, NEW.state, pathctl_now(), pathctl_actor(), pathctl_cause());
END;

CREATE TRIGGER volume_attached AFTER UPDATE OF attached ON volumes WHEN NEW.attached <> OLD.attached BEGIN
    INSERT INTO events (kind, message, volume, at, actor, cause)
    VALUES (CASE NEW.attached WHEN 1 THEN 'volume.attached' ELSE 'volume.detached' END, 'volume ' || NEW.name || CASE NEW.attached WHEN 1 THEN ' is to be a block device' ELSE ' is no block device any more' END, NEW.name, pathctl_now(), pathctl_actor(), pathctl_cause());
END;

CREATE TRIGGER volume_deleted AFTER DELETE ON volumes BEGIN
    INSERT INTO events (kind, message, volume, before, at, actor, cause)
    VALUES ('volume.deleted', 'volume ' || OLD.name || ' is deleted', OLD.name, OLD.state, pathctl_now(), pathctl_actor(), pathctl_cause());
END;

CREATE TRIGGER connection_created AFTER INSERT ON connections BEGIN
    INSERT INTO events (kind, message, after, volume, pair, peer, at, actor, cause)
    VALUES ('connection.created', 'connection of ' || 'volume ' || NEW.volume || ' as ' || NEW.side || ' of pair ' || substr(NEW.pair, 1, 8) || ' with ' || NEW.peer || ':' || NEW.peer_volume, NEW.state, NEW.volume, NEW.pair, NEW.peer, pathctl_now(), pathctl_actor(), pathctl_cause());
END;

CREATE TRIGGER connection_state AFTER UPDATE OF state ON connections WHEN NEW.state <> OLD.state BEGIN
    INSERT INTO events (kind, message, before, after, volume, pair, peer, at, actor, cause)
    VALUES ('connection.' || NEW.state, 'connection of ' || 'volume ' || NEW.volume || ' as ' || NEW.side || ' of pair ' || substr(NEW.pair, 1, 8) || ' with ' || NEW.peer || ':' || NEW.peer_volume || ' is ' || NEW.state, OLD.state, NEW.state, NEW.volume, NEW.pair, NEW.peer, pathctl_now(), pathctl_actor(), pathctl_cause());
END;

CREATE TRIGGER connection_rate AFTER UPDATE OF copy_rate_bytes_s ON connections WHEN NEW.copy_rate_bytes_s IS NOT OLD.copy_rate_bytes_s BEGIN
    INSERT INTO events (kind, message, before, after, volume, pair, peer, at, actor, cause)
    VALUES ('connection.rate', 'the background copy of pair ' || substr(NEW.pair, 1, 8) || CASE NEW.copy_rate_bytes_s WHEN 0 THEN ' is paused' ELSE coalesce(' is limited to ' || NEW.copy_rate_bytes_s || ' bytes per second', ' has no limit of its own') END, coalesce(OLD.copy_rate_bytes_s, 'none'), coalesce(NEW.copy_rate_bytes_s, 'none'), NEW.volume, NEW.pair, NEW.peer, pathctl_now(), pathctl_actor(), pathctl_cause());
END;

CREATE TRIGGER connection_deleted AFTER DELETE ON connections BEGIN
    INSERT INTO events (kind, message, before, volume, pair, peer, at, actor, cause)
    VALUES ('connection.deleted', 'connection of ' || 'volume ' || OLD.volume || ' as ' || OLD.side || ' of pair ' || substr(OLD.pair, 1, 8) || ' with ' || OLD.peer || ':' || OLD.peer_volume || ' is deleted', OLD.state, OLD.volume, OLD.pair, OLD.peer, pathctl_now(), pathctl_actor(), pathctl_cause());
END;

PRAGMA user_version = 2;
