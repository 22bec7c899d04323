-- The tables of SqliteStorage, version 1. A new database is made beside its final name and linked
-- there when it is complete; an older one is migrated in one transaction: nobody ever sees a part.
-- A migration must leave everything in place that the releases before it use: their coordinators
-- go on while it runs and afterwards. Columns that it adds have defaults.

-- One row per workflow, written in the transaction that appends to its journal.
-- seq is the number of the journal's last entry: an append names it, and that is the fence.
CREATE TABLE catalog (
    id INTEGER PRIMARY KEY,
    workflow_id TEXT NOT NULL UNIQUE,
    incarnation TEXT NOT NULL UNIQUE,
    seq INTEGER NOT NULL,
    status TEXT NOT NULL,
    holder TEXT NOT NULL,
    submitted_at REAL NOT NULL,
    started_at REAL,
    ended_at REAL,
    metadata TEXT NOT NULL,  -- JSON
    plan_digest TEXT NOT NULL,
    error TEXT,
    released INTEGER NOT NULL
);

-- The listing order, alone and within one status.
CREATE INDEX catalog_by_submission ON catalog (submitted_at, workflow_id);
CREATE INDEX catalog_by_status ON catalog (status, submitted_at, workflow_id);

-- A rowid table on purpose: appends to many workflows then fill the same last page, and only the
-- small index entries are scattered.
CREATE TABLE journal (
    incarnation TEXT NOT NULL,
    seq INTEGER NOT NULL,
    commit_id TEXT NOT NULL,
    entry BLOB NOT NULL,
    UNIQUE (incarnation, seq)
);

-- Coordinator processes and until when each may be believed alive, in seconds since 1970.
CREATE TABLE holders (
    holder_id TEXT NOT NULL PRIMARY KEY,
    coordinator TEXT NOT NULL,
    host TEXT NOT NULL,
    pid INTEGER NOT NULL,
    started_ticks INTEGER NOT NULL,
    lease_until REAL NOT NULL
);

-- Incarnations whose blobs are being removed. No workflow can be created under one of them.
CREATE TABLE tombstones (
    incarnation TEXT NOT NULL PRIMARY KEY,
    deleted_at REAL NOT NULL
);
