CREATE TABLE positions (
    projection TEXT NOT NULL,
    topic TEXT NOT NULL,
    partition BIGINT NOT NULL,
    next BIGINT NOT NULL,
    fingerprint BIGINT,
    record_time BIGINT NOT NULL,
    epoch BIGINT NOT NULL,
    PRIMARY KEY (projection, topic, partition)
);

CREATE TABLE sessions (
    number BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    -- Random, so that a session that is deleted and comes back has other versions.
    incarnation BIGINT NOT NULL,
    version BIGINT NOT NULL,
    -- When its latest record was written, in milliseconds since 1970.
    touched BIGINT NOT NULL
);

CREATE INDEX sessions_by_age ON sessions (touched);

-- kind: 0 SESSION_START, 1 EVENT, 2 SESSION_END.
CREATE TABLE session_events (
    session BIGINT NOT NULL REFERENCES sessions (number) ON DELETE CASCADE,
    identity BYTEA NOT NULL,
    kind BIGINT NOT NULL,
    timestamp DOUBLE PRECISION NOT NULL,
    arrival BYTEA NOT NULL,
    added BIGINT NOT NULL,
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
