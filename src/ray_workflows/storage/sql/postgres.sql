-- The queries of PostgresStorage, by name. {schema} is the schema's quoted name. Catalog columns
-- come in the order of CatalogRow.

-- name: read_server
-- The catalog is asked itself: to_regclass may answer from before the transaction waited for a lock.
SELECT current_setting('server_version_num')::integer, current_setting('server_encoding'),
    current_setting('fsync'), current_setting('transaction_read_only'),
    EXISTS (SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = %(schema_name)s),
    EXISTS (
        SELECT 1 FROM pg_catalog.pg_tables
        WHERE schemaname = %(schema_name)s AND tablename = 'schema_version'
    );

-- name: read_schema_version
SELECT max(version) FROM {schema}.schema_version;

-- name: lock_schema
-- Held to the end of the transaction: one process at a time creates or migrates.
SELECT pg_advisory_xact_lock(hashtextextended('ray-workflows ' || %(schema_text)s, 0));

-- name: create_schema
CREATE SCHEMA {schema};

-- name: write_schema_version
INSERT INTO {schema}.schema_version (version) VALUES (%(version)s);

-- name: read_missing_rights
SELECT string_agg(wanted.name || ': ' || wanted.rights, '; ')
FROM (VALUES
    ('catalog', 'SELECT, INSERT, UPDATE, DELETE'), ('journal', 'SELECT, INSERT, DELETE'),
    ('holders', 'SELECT, INSERT, UPDATE, DELETE'), ('blobs', 'SELECT, INSERT, DELETE'),
    ('blob_chunks', 'SELECT, INSERT, DELETE'), ('tombstones', 'SELECT, INSERT, DELETE')
) AS wanted (name, rights)
CROSS JOIN LATERAL unnest(string_to_array(wanted.rights, ', ')) AS single (privilege)
WHERE NOT has_table_privilege(format('%%I.%%I', %(schema_name)s::text, wanted.name), privilege);

-- name: configure_transaction
-- For a transaction of several statements. Set for it alone, so that it does no harm, and works,
-- behind a pooler that hands out a connection per transaction.
-- Durable whatever the server's default is, which may be stronger. If this client is cut off in
-- the middle, the server gives up its locks soon.
SELECT
    set_config('synchronous_commit', CASE current_setting('synchronous_commit')
        WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true),
    set_config('idle_in_transaction_session_timeout', '15s', true),
    set_config('tcp_keepalives_idle', '15', true),
    set_config('tcp_keepalives_interval', '5', true),
    set_config('tcp_keepalives_count', '3', true);

-- name: commit_appends
-- At most one append to each workflow, sorted by workflow_id; the rows come as JSON (`Sent` in
-- postgres.py), the entries as an array beside it. Returns the incarnations that were appended to; what
-- is not among them is stale. One statement, so that one trip to the server takes and releases the
-- locks.
WITH wanted AS MATERIALIZED (
    SELECT workflow_id COLLATE "C" AS workflow_id, incarnation COLLATE "C" AS incarnation, seq,
        status, holder, submitted_at, started_at, ended_at, coalesce(metadata, '{}') AS metadata,
        coalesce(plan_digest, '') AS plan_digest, error, coalesce(released, false) AS released,
        commit_id, entry
    FROM ROWS FROM (
        json_to_recordset(%(rows)b::json) AS (
            i text, n text, s bigint, t text, h text, b double precision, a double precision,
            e double precision, m text, p text, x text, r boolean, c text
        ),
        unnest(%(entries)b::bytea[])
    ) AS given (
        workflow_id, incarnation, seq, status, holder, submitted_at, started_at, ended_at, metadata,
        plan_digest, error, released, commit_id, entry
    )
),
-- The fence: no row is taken unless the journal ends at seq - 1. All rows are locked before one is
-- written, and everybody locks in this order. Each is found by one look into an index, and updated
-- where it was found: joined by their ids, a large catalog would be read whole.
locked AS MATERIALIZED (
    SELECT found.place, wanted.*
    FROM wanted
    CROSS JOIN LATERAL (
        SELECT ctid AS place FROM {schema}.catalog
        WHERE catalog.workflow_id = wanted.workflow_id AND catalog.incarnation = wanted.incarnation
            AND catalog.seq = wanted.seq - 1
        FOR NO KEY UPDATE
    ) AS found
    WHERE wanted.seq > 1
),
advanced AS (
    UPDATE {schema}.catalog AS row
    SET seq = locked.seq, status = locked.status, holder = locked.holder,
        submitted_at = locked.submitted_at, started_at = locked.started_at,
        ended_at = locked.ended_at, metadata = locked.metadata, plan_digest = locked.plan_digest,
        error = locked.error, released = locked.released
    FROM locked
    WHERE row.ctid = ANY (ARRAY(SELECT place FROM locked)) AND row.ctid = locked.place
    RETURNING row.incarnation
),
created AS (
    INSERT INTO {schema}.catalog (
        workflow_id, incarnation, seq, status, holder, submitted_at, started_at, ended_at,
        metadata, plan_digest, error, released
    )
    SELECT workflow_id, incarnation, seq, status, holder, submitted_at, started_at, ended_at,
        metadata, plan_digest, error, released
    FROM wanted
    WHERE seq = 1 AND NOT EXISTS (
        SELECT 1 FROM {schema}.tombstones WHERE tombstones.incarnation = wanted.incarnation
    )
    ON CONFLICT DO NOTHING
    RETURNING incarnation
),
appended AS (
    INSERT INTO {schema}.journal (incarnation, seq, commit_id, entry)
    SELECT incarnation, seq, commit_id, entry
    FROM wanted
    WHERE incarnation IN (SELECT incarnation FROM advanced)
        OR incarnation IN (SELECT incarnation FROM created)
    RETURNING incarnation
)
-- Durable whatever the server's default is, also where this is a transaction by itself.
SELECT array_agg(incarnation), set_config('synchronous_commit',
    CASE current_setting('synchronous_commit')
        WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true)
FROM appended;

-- name: advance_one
-- One append to a workflow that exists. As advance_appends, but the planner has half as much to think
-- about, and a large entry is not carried from one part to the next. Returns as that does.
WITH advanced AS (
    UPDATE {schema}.catalog
    SET seq = %(seq)s, status = %(status)s, holder = %(holder)s, submitted_at = %(submitted_at)s,
        started_at = %(started_at)s, ended_at = %(ended_at)s, metadata = %(metadata)s,
        plan_digest = %(plan_digest)s, error = %(error)s, released = %(released)s
    WHERE workflow_id = %(workflow_id)s AND incarnation = %(incarnation)s
        AND seq = %(expected_seq)s
    RETURNING incarnation
),
appended AS (
    INSERT INTO {schema}.journal (incarnation, seq, commit_id, entry)
    SELECT incarnation, %(seq)s, %(commit_id)s, %(entry)b FROM advanced
    RETURNING incarnation
)
-- Durable whatever the server's default is, also where this is a transaction by itself.
SELECT array_agg(incarnation), set_config('synchronous_commit',
    CASE current_setting('synchronous_commit')
        WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true)
FROM appended;

-- name: advance_appends
-- As commit_appends where no workflow is new.
WITH wanted AS MATERIALIZED (
    SELECT workflow_id COLLATE "C" AS workflow_id, incarnation COLLATE "C" AS incarnation, seq,
        status, holder, submitted_at, started_at, ended_at, coalesce(metadata, '{}') AS metadata,
        coalesce(plan_digest, '') AS plan_digest, error, coalesce(released, false) AS released,
        commit_id, entry
    FROM ROWS FROM (
        json_to_recordset(%(rows)b::json) AS (
            i text, n text, s bigint, t text, h text, b double precision, a double precision,
            e double precision, m text, p text, x text, r boolean, c text
        ),
        unnest(%(entries)b::bytea[])
    ) AS given (
        workflow_id, incarnation, seq, status, holder, submitted_at, started_at, ended_at, metadata,
        plan_digest, error, released, commit_id, entry
    )
),
locked AS MATERIALIZED (
    SELECT found.place, wanted.*
    FROM wanted
    CROSS JOIN LATERAL (
        SELECT ctid AS place FROM {schema}.catalog
        WHERE catalog.workflow_id = wanted.workflow_id AND catalog.incarnation = wanted.incarnation
            AND catalog.seq = wanted.seq - 1
        FOR NO KEY UPDATE
    ) AS found
),
advanced AS (
    UPDATE {schema}.catalog AS row
    SET seq = locked.seq, status = locked.status, holder = locked.holder,
        submitted_at = locked.submitted_at, started_at = locked.started_at,
        ended_at = locked.ended_at, metadata = locked.metadata, plan_digest = locked.plan_digest,
        error = locked.error, released = locked.released
    FROM locked
    WHERE row.ctid = ANY (ARRAY(SELECT place FROM locked)) AND row.ctid = locked.place
    RETURNING locked.incarnation, locked.seq, locked.commit_id, locked.entry
),
appended AS (
    INSERT INTO {schema}.journal (incarnation, seq, commit_id, entry)
    SELECT incarnation, seq, commit_id, entry FROM advanced
    RETURNING incarnation
)
SELECT array_agg(incarnation), set_config('synchronous_commit',
    CASE current_setting('synchronous_commit')
        WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true)
FROM appended;

-- name: tell_holders
SELECT pg_notify(%(channel)s, holder) FROM unnest(%(holders)s::text[]) AS others (holder);

-- name: read_journal
SELECT seq, commit_id, entry FROM {schema}.journal
WHERE incarnation = %(incarnation)s AND seq > %(after)s
ORDER BY seq;

-- name: read_catalog
SELECT workflow_id, incarnation, seq, status, holder, submitted_at, started_at, ended_at,
    metadata, plan_digest, error, released
FROM {schema}.catalog WHERE workflow_id = %(workflow_id)s;

-- name: list_catalog
-- It continues after (submitted_at, workflow_id).
SELECT workflow_id, incarnation, seq, status, holder, submitted_at, started_at, ended_at,
    metadata, plan_digest, error, released
FROM {schema}.catalog
WHERE (submitted_at, workflow_id) > (%(submitted_at)s::double precision, %(workflow_id)s)
ORDER BY submitted_at, workflow_id
LIMIT %(limit)s;

-- name: list_catalog_by_status
-- As list_catalog. A page of each status is read from the index, and the pages are merged: one scan
-- would pass over all rows of the other statuses, or sort all of these. Said as a range and an
-- order of all columns, because no other index can serve that: given an equality, the planner may
-- take the one by submission and throw away what it did not hope to meet.
SELECT page.*
FROM unnest(%(statuses)s::text[]) AS wanted (status)
CROSS JOIN LATERAL (
    SELECT workflow_id, incarnation, seq, status, holder, submitted_at, started_at, ended_at,
        metadata, plan_digest, error, released
    FROM {schema}.catalog
    WHERE (catalog.status, submitted_at, workflow_id)
            > (wanted.status, %(submitted_at)s::double precision, %(workflow_id)s)
        AND catalog.status <= wanted.status
    ORDER BY catalog.status, submitted_at, workflow_id
    LIMIT %(limit)s
) AS page
ORDER BY page.submitted_at, page.workflow_id
LIMIT %(limit)s;

-- name: list_catalog_by_holder
-- As list_catalog_by_status, for each holder and status.
SELECT page.*
FROM unnest(%(holders)s::text[]) AS owner (holder)
CROSS JOIN unnest(%(statuses)s::text[]) AS wanted (status)
CROSS JOIN LATERAL (
    SELECT workflow_id, incarnation, seq, status, holder, submitted_at, started_at, ended_at,
        metadata, plan_digest, error, released
    FROM {schema}.catalog
    WHERE (catalog.holder, catalog.status, submitted_at, workflow_id)
            > (owner.holder, wanted.status, %(submitted_at)s::double precision, %(workflow_id)s)
        AND (catalog.holder, catalog.status) <= (owner.holder, wanted.status)
    ORDER BY catalog.holder, catalog.status, submitted_at, workflow_id
    LIMIT %(limit)s
) AS page
ORDER BY page.submitted_at, page.workflow_id
LIMIT %(limit)s;

-- name: list_catalog_newest
-- As list_catalog, from the other end.
SELECT workflow_id, incarnation, seq, status, holder, submitted_at, started_at, ended_at,
    metadata, plan_digest, error, released
FROM {schema}.catalog
WHERE (submitted_at, workflow_id) < (%(submitted_at)s::double precision, %(workflow_id)s)
ORDER BY submitted_at DESC, workflow_id DESC
LIMIT %(limit)s;

-- name: list_catalog_newest_by_status
-- As list_catalog_by_status, from the other end.
SELECT page.*
FROM unnest(%(statuses)s::text[]) AS wanted (status)
CROSS JOIN LATERAL (
    SELECT workflow_id, incarnation, seq, status, holder, submitted_at, started_at, ended_at,
        metadata, plan_digest, error, released
    FROM {schema}.catalog
    WHERE (catalog.status, submitted_at, workflow_id)
            < (wanted.status, %(submitted_at)s::double precision, %(workflow_id)s)
        AND catalog.status >= wanted.status
    ORDER BY catalog.status DESC, submitted_at DESC, workflow_id DESC
    LIMIT %(limit)s
) AS page
ORDER BY page.submitted_at DESC, page.workflow_id DESC
LIMIT %(limit)s;

-- name: list_catalog_newest_by_holder
-- As list_catalog_by_holder, from the other end.
SELECT page.*
FROM unnest(%(holders)s::text[]) AS owner (holder)
CROSS JOIN unnest(%(statuses)s::text[]) AS wanted (status)
CROSS JOIN LATERAL (
    SELECT workflow_id, incarnation, seq, status, holder, submitted_at, started_at, ended_at,
        metadata, plan_digest, error, released
    FROM {schema}.catalog
    WHERE (catalog.holder, catalog.status, submitted_at, workflow_id)
            < (owner.holder, wanted.status, %(submitted_at)s::double precision, %(workflow_id)s)
        AND (catalog.holder, catalog.status) >= (owner.holder, wanted.status)
    ORDER BY catalog.holder DESC, catalog.status DESC, submitted_at DESC, workflow_id DESC
    LIMIT %(limit)s
) AS page
ORDER BY page.submitted_at DESC, page.workflow_id DESC
LIMIT %(limit)s;

-- name: delete_workflow
-- Everything of it in one statement; returns how many workflows there were.
WITH gone AS (
    DELETE FROM {schema}.catalog
    WHERE workflow_id = %(workflow_id)s AND incarnation = %(incarnation)s
        AND seq = %(expected_seq)s
    RETURNING incarnation
),
entries AS (
    DELETE FROM {schema}.journal USING gone WHERE journal.incarnation = gone.incarnation
),
headers AS (
    DELETE FROM {schema}.blobs USING gone WHERE blobs.incarnation = gone.incarnation
    RETURNING blobs.id
),
chunks AS (
    DELETE FROM {schema}.blob_chunks USING headers WHERE blob_chunks.blob_id = headers.id
)
SELECT count(*), set_config('synchronous_commit',
    CASE current_setting('synchronous_commit')
        WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true)
FROM gone;

-- name: write_blob
-- A blob of one chunk, whole; returns how many were written.
WITH header AS (
    INSERT INTO {schema}.blobs (id, incarnation, key, size, checksum)
    VALUES (%(id)s, %(incarnation)s, %(key)s, %(size)s, %(checksum)s)
    ON CONFLICT DO NOTHING
    RETURNING id
),
chunks AS (
    INSERT INTO {schema}.blob_chunks (blob_id, number, data)
    SELECT id, 0, %(data)b::bytea FROM header WHERE %(size)s > 0
)
SELECT count(*), set_config('synchronous_commit',
    CASE current_setting('synchronous_commit')
        WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true)
FROM header;

-- name: copy_chunks
COPY {schema}.blob_chunks (blob_id, number, data) FROM STDIN (FORMAT BINARY);

-- name: write_blob_header
-- Last, when all chunks are there. The time is when it became one, not when it was begun.
INSERT INTO {schema}.blobs (id, incarnation, key, size, checksum, written_at)
VALUES (%(id)s, %(incarnation)s, %(key)s, %(size)s, %(checksum)s, clock_timestamp())
ON CONFLICT DO NOTHING
RETURNING id;

-- name: find_blob
SELECT key, size, checksum, id FROM {schema}.blobs
WHERE incarnation = %(incarnation)s AND key = %(key)s;

-- name: read_chunks
SELECT data FROM {schema}.blob_chunks WHERE blob_id = %(id)s ORDER BY number;

-- name: read_some_chunks
-- A part of a blob, for those who pass it on: nothing is held open on the server in between.
SELECT data FROM {schema}.blob_chunks
WHERE blob_id = %(id)s AND number >= %(first)s AND number < %(end)s ORDER BY number;

-- name: delete_blobs
-- Returns how many there were.
WITH headers AS (
    DELETE FROM {schema}.blobs WHERE incarnation = %(incarnation)s
    RETURNING id
),
chunks AS (
    DELETE FROM {schema}.blob_chunks USING headers WHERE blob_chunks.blob_id = headers.id
)
SELECT count(*) FROM headers;

-- name: old_blobs
SELECT incarnation FROM {schema}.blobs
GROUP BY incarnation
HAVING max(written_at) <= clock_timestamp() - make_interval(secs => %(grace_seconds)s)
ORDER BY incarnation;

-- name: bury_orphans
-- Incarnations with blobs but no workflow get a tombstone when the newest blob is old enough.
INSERT INTO {schema}.tombstones (incarnation)
SELECT incarnation FROM {schema}.blobs
WHERE NOT EXISTS (SELECT 1 FROM {schema}.catalog WHERE catalog.incarnation = blobs.incarnation)
GROUP BY incarnation
HAVING max(written_at) <= clock_timestamp() - make_interval(secs => %(grace_seconds)s)
ON CONFLICT DO NOTHING;

-- name: has_buried
SELECT EXISTS (
    SELECT 1 FROM {schema}.tombstones
    WHERE EXISTS (SELECT 1 FROM {schema}.blobs WHERE blobs.incarnation = tombstones.incarnation)
);

-- name: lock_catalog
-- Waits for creations that began before the tombstones were there. Later ones see them: whoever
-- waits for this lock reads what is committed when it has it.
LOCK TABLE {schema}.catalog IN SHARE MODE;

-- name: spare_created
DELETE FROM {schema}.tombstones
WHERE EXISTS (SELECT 1 FROM {schema}.catalog WHERE catalog.incarnation = tombstones.incarnation);

-- name: read_buried
SELECT DISTINCT incarnation FROM {schema}.blobs
WHERE incarnation IN (SELECT incarnation FROM {schema}.tombstones)
    AND NOT EXISTS (SELECT 1 FROM {schema}.catalog WHERE catalog.incarnation = blobs.incarnation);

-- name: remove_tombstones
-- Kept long after the sweep: a submission may still be on its way.
DELETE FROM {schema}.tombstones
WHERE buried_at < clock_timestamp() - interval '30 days'
    AND NOT EXISTS (SELECT 1 FROM {schema}.blobs WHERE blobs.incarnation = tombstones.incarnation);

-- name: renew_holder
INSERT INTO {schema}.holders (holder_id, coordinator, host, pid, started_ticks, lease_until)
VALUES (%(holder_id)s, %(coordinator)s, %(host)s, %(pid)s, %(started_ticks)s,
    extract(epoch FROM clock_timestamp())::double precision + %(lease_seconds)s)
ON CONFLICT (holder_id) DO UPDATE
SET coordinator = excluded.coordinator, host = excluded.host, pid = excluded.pid,
    started_ticks = excluded.started_ticks, lease_until = excluded.lease_until;

-- name: remove_holder
DELETE FROM {schema}.holders WHERE holder_id = %(holder_id)s;

-- name: read_holders
SELECT holder_id, coordinator, host, pid, started_ticks, lease_until
FROM {schema}.holders ORDER BY holder_id;

-- name: now
SELECT extract(epoch FROM clock_timestamp())::double precision;
