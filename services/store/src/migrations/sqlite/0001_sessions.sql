CREATE TABLE positions (
    projection TEXT NOT NULL,
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    next INTEGER NOT NULL,
    fingerprint INTEGER,
    record_time INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    PRIMARY KEY (projection, topic, partition)
);

CREATE TABLE sessions (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    -- Random, so that a session that is deleted and comes back has other versions.
    incarnation INTEGER NOT NULL,
    version INTEGER NOT NULL,
    -- When its latest record was written, in milliseconds since 1970.
    touched INTEGER NOT NULL
);

CREATE INDEX sessions_by_age ON sessions (touched);

-- kind: 0 SESSION_START, 1 EVENT, 2 SESSION_END.
CREATE TABLE session_events (
    session INTEGER NOT NULL REFERENCES sessions (number) ON DELETE CASCADE,
    identity BLOB NOT NULL,
    kind INTEGER NOT NULL,
    timestamp REAL NOT NULL,
    arrival BLOB NOT NULL,
    added INTEGER NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (session, identity)
);

CREATE INDEX session_events_in_order ON session_events (session, timestamp, arrival) WHERE kind = 1;
CREATE INDEX session_events_that_bound ON session_events (session, kind, arrival) WHERE kind <> 1;

-- What readers may see.
CREATE VIEW session_documents AS
SELECT number, id, incarnation, version,
    (SELECT body FROM session_events WHERE session = number AND kind = 0 AND kind <> 1 ORDER BY arrival LIMIT 1) AS start_event,
    (SELECT body FROM session_events WHERE session = number AND kind = 2 AND kind <> 1 ORDER BY arrival DESC LIMIT 1) AS end_event
FROM sessions;

CREATE VIEW session_children AS
SELECT session, timestamp, arrival, added, body FROM session_events WHERE kind = 1;

CREATE VIEW projected_positions AS
SELECT projection, topic, partition, next FROM positions;
