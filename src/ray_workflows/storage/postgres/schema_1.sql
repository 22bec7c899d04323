-- The tables of PostgresStorage, version 1. Runs in one transaction, under an advisory lock, in a
-- schema that exists: nobody ever sees a part of it. {schema} is the schema's quoted name.

-- What was applied to this schema. A migration must leave everything in place that the releases
-- before it use: their coordinators go on while it runs and afterwards.
CREATE TABLE {schema}.schema_version (
    version integer PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
);

-- One row per workflow, written in the transaction that appends to its journal, if it changes.
-- seq is the number of the entry with which it last changed; the journal itself says where it ends.
-- Collation "C" orders ids by their bytes, which is by code points, wherever the server runs.
-- No index holds seq, and pages have room: an append then rewrites a row within its page.
CREATE TABLE {schema}.catalog (
    workflow_id text COLLATE "C" PRIMARY KEY,
    incarnation text COLLATE "C" NOT NULL UNIQUE,
    seq bigint NOT NULL,
    status text COLLATE "C" NOT NULL,
    holder text COLLATE "C" NOT NULL,
    submitted_at double precision NOT NULL,
    started_at double precision,
    ended_at double precision,
    metadata text NOT NULL,  -- JSON; text, because jsonb can't hold every string that JSON can
    plan_digest text NOT NULL,
    error text,
    released boolean NOT NULL
) WITH (fillfactor = 80);

-- The listing order: alone, within one status, and within one status of one holder.
CREATE INDEX catalog_by_submission ON {schema}.catalog (submitted_at, workflow_id);
CREATE INDEX catalog_by_status ON {schema}.catalog (status, submitted_at, workflow_id);
CREATE INDEX catalog_by_holder ON {schema}.catalog (holder, status, submitted_at, workflow_id);

CREATE TABLE {schema}.journal (
    incarnation text COLLATE "C" NOT NULL,
    seq bigint NOT NULL,
    commit_id text NOT NULL,
    entry bytea NOT NULL,
    PRIMARY KEY (incarnation, seq)
);

-- Coordinator processes and until when each may be believed alive, in seconds since 1970.
CREATE TABLE {schema}.holders (
    holder_id text COLLATE "C" PRIMARY KEY,
    coordinator text NOT NULL,
    host text NOT NULL,
    pid bigint NOT NULL,
    started_ticks bigint NOT NULL,
    lease_until double precision NOT NULL
);

-- A blob's row is written in the transaction that writes its chunks: what has a row is whole.
-- The writer makes the id: for a sequence, users would need one right more.
CREATE TABLE {schema}.blobs (
    id uuid PRIMARY KEY,
    incarnation text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    size bigint NOT NULL,
    checksum text NOT NULL,
    written_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (incarnation, key)
);

-- In rows, because a value can't be larger than 1 GB and is held in memory whole.
CREATE TABLE {schema}.blob_chunks (
    blob_id uuid NOT NULL,
    number integer NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (blob_id, number)
);

-- Compressing what is mostly numbers and images costs time and gains nothing.
ALTER TABLE {schema}.blob_chunks ALTER COLUMN data SET STORAGE EXTERNAL;

-- Incarnations whose blobs were swept. No workflow can be created under one of them.
CREATE TABLE {schema}.tombstones (
    incarnation text COLLATE "C" PRIMARY KEY,
    buried_at timestamptz NOT NULL DEFAULT now()
);
