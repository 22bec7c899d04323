-- The queries of PostgresStorage, by name. {schema} is the schema's quoted name. Catalog columns
-- come in the order of CatalogRow, then as `rows.decode_row` takes them. Functions are named with
-- their schema. Otherwise a user with the right to create functions in a schema of the search path
-- could add one with better matching argument types, and have it run with the rights of this user.
-- (Except unnest of several arrays, which is syntax and always means PostgreSQL's own.)

-- name: read_server
-- Reads the system catalog: to_regclass may answer from before the transaction waited for a lock.
SELECT pg_catalog.current_setting('server_version_num')::integer, pg_catalog.current_setting('server_encoding'),
    pg_catalog.current_setting('fsync'), pg_catalog.current_setting('transaction_read_only'),
    EXISTS (SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = %(schema_name)s),
    EXISTS (
        SELECT 1 FROM pg_catalog.pg_tables
        WHERE schemaname = %(schema_name)s AND tablename = 'schema_version'
    );

-- name: read_schema_version
SELECT pg_catalog.max(version) FROM {schema}.schema_version;

-- name: lock_schema
-- Held to the end of the transaction: one process at a time creates or migrates.
SELECT pg_catalog.pg_advisory_xact_lock(
    pg_catalog.hashtextextended(
        'ray-workflows '::text OPERATOR(pg_catalog.||) %(schema_text)s::text, 0::bigint
    )
);

-- name: fix_search_path
-- For the transaction that creates tables: names in their definitions then mean PostgreSQL's own.
SELECT pg_catalog.set_config('search_path', 'pg_catalog', true);

-- name: create_schema
CREATE SCHEMA {schema};

-- name: write_schema_version
INSERT INTO {schema}.schema_version (version) VALUES (%(version)s);

-- name: read_missing_rights
SELECT pg_catalog.string_agg(wanted.name || ': ' || wanted.rights, '; ')
FROM (VALUES
    ('catalog', 'SELECT, INSERT, UPDATE, DELETE'), ('catalog_tags', 'SELECT'),
    ('journal', 'SELECT, INSERT, UPDATE, DELETE'),
    ('holders', 'SELECT, INSERT, UPDATE, DELETE'), ('blobs', 'SELECT, INSERT, DELETE'),
    ('blob_chunks', 'SELECT, INSERT, DELETE'), ('tombstones', 'SELECT, INSERT, DELETE')
) AS wanted (name, rights)
CROSS JOIN LATERAL pg_catalog.unnest(pg_catalog.string_to_array(wanted.rights, ', ')) AS single (privilege)
WHERE NOT pg_catalog.has_table_privilege(pg_catalog.format('%%I.%%I', %(schema_name)s::text, wanted.name), privilege);

-- name: configure_transaction
-- For a transaction of several statements. Set for the transaction alone, so that it works, and does
-- no harm, behind a pooler that hands out a connection per transaction.
-- Commits are durable whatever the server's default is, which may be stronger. If this client is cut
-- off in the middle, the server releases its locks soon.
SELECT
    pg_catalog.set_config('synchronous_commit', CASE pg_catalog.current_setting('synchronous_commit')
        WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true),
    pg_catalog.set_config('idle_in_transaction_session_timeout', '15s', true),
    pg_catalog.set_config('tcp_keepalives_idle', '15', true),
    pg_catalog.set_config('tcp_keepalives_interval', '5', true),
    pg_catalog.set_config('tcp_keepalives_count', '3', true);

-- name: append_entries
-- Appends that change nothing of their catalog rows but seq: at most one to each workflow, sorted by
-- workflow_id, each with the commit id of the entry that it follows. Returns the incarnations that
-- were appended to; all other appends are stale. One statement, so that one trip to the server
-- takes and releases the locks.
-- The fence: an entry is appended only after the journal's last one. Each append and each deletion
-- locks that last entry first. So transactions wait only for these locks, never for an insert, and all
-- take them in this order. A rival that held the lock may have appended; this statement doesn't see
-- its entry, but the primary key refuses ours, and the transaction starts again.
WITH locked AS MATERIALIZED (
    SELECT sent.incarnation, sent.seq, sent.commit_id, sent.entry
    FROM unnest(
        %(incarnations)s::text[], %(seqs)s::bigint[], %(commit_ids)s::text[], %(after)s::text[],
        %(entries)b::bytea[]
    ) AS sent (incarnation, seq, commit_id, after, entry)
    CROSS JOIN LATERAL (
        SELECT journal.seq, journal.commit_id FROM {schema}.journal
        WHERE journal.incarnation = sent.incarnation AND journal.seq >= sent.seq - 1
        ORDER BY journal.seq DESC
        LIMIT 1
        FOR UPDATE
    ) AS last
    WHERE last.seq = sent.seq - 1 AND last.commit_id = sent.after
),
appended AS (
    INSERT INTO {schema}.journal (incarnation, seq, commit_id, entry)
    SELECT incarnation, seq, commit_id, entry FROM locked
)
-- Durable whatever the server's default is, also if this is a transaction by itself.
SELECT pg_catalog.array_agg(incarnation), pg_catalog.set_config('synchronous_commit',
    CASE pg_catalog.current_setting('synchronous_commit')
        WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true)
FROM locked;

-- name: append_entry
-- As append_entries, for one append, and as cheap as possible to plan.
INSERT INTO {schema}.journal (incarnation, seq, commit_id, entry)
SELECT %(incarnation)s, %(seq)s, %(commit_id)s, %(entry)b
FROM {schema}.journal
WHERE incarnation = %(incarnation)s AND seq = %(expected_seq)s AND commit_id = %(after)s
FOR UPDATE
ON CONFLICT DO NOTHING
RETURNING ARRAY[incarnation], pg_catalog.set_config('synchronous_commit',
    CASE pg_catalog.current_setting('synchronous_commit')
        WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true);

-- name: commit_appends
-- As append_entries, for any appends. Changed and new catalog rows come as JSON (`SENT` in
-- `appends.py`) beside the arrays; the row of an unchanged one is empty and has an `after`.
WITH wanted AS MATERIALIZED (
    SELECT incarnation, seq, commit_id, after, entry, workflow_id, status, holder, submitted_at,
        started_at, ended_at, coalesce(metadata, '{}') AS metadata,
        coalesce(plan_digest, '') AS plan_digest, error, coalesce(released, false) AS released,
        coalesce(kind, 'dag') AS kind, coalesce(name, '') AS name, coalesce(queue, '') AS queue,
        coalesce(priority, 0) AS priority, coalesce(parent, '') AS parent, due_at,
        coalesce(tags, '{}') AS tags, coalesce(snapshot, 0) AS snapshot, digest
    FROM ROWS FROM (
        unnest(
            %(incarnations)s::text[], %(seqs)s::bigint[], %(commit_ids)s::text[], %(after)s::text[],
            %(entries)b::bytea[]
        ),
        pg_catalog.json_to_recordset(%(rows)b::json) AS (
            i text, t text, h text, b double precision, a double precision, e double precision,
            m text, p text, x text, r boolean, k text, n text, q text, y bigint, o text,
            u double precision, g text, s bigint, d text
        )
    ) AS sent (
        incarnation, seq, commit_id, after, entry, workflow_id, status, holder, submitted_at,
        started_at, ended_at, metadata, plan_digest, error, released, kind, name, queue, priority,
        parent, due_at, tags, snapshot, digest
    )
),
-- Each row is found by one index lookup, and updated in place: for a join by ids, the planner may scan
-- a large catalog. The row needs no lock: all writers of it hold the lock of the journal's end.
locked AS MATERIALIZED (
    SELECT wanted.*, found.place,
        last.seq = wanted.seq - 1 AND last.commit_id = wanted.after AS unchanged
    FROM wanted
    CROSS JOIN LATERAL (
        SELECT journal.seq, journal.commit_id FROM {schema}.journal
        WHERE journal.incarnation = wanted.incarnation AND journal.seq >= wanted.seq - 1
        ORDER BY journal.seq DESC
        LIMIT 1
        FOR UPDATE
    ) AS last
    LEFT JOIN LATERAL (
        SELECT ctid AS place FROM {schema}.catalog
        WHERE catalog.workflow_id = wanted.workflow_id AND catalog.incarnation = wanted.incarnation
            AND last.seq = wanted.seq - 1
        OFFSET 0
    ) AS found ON true
    WHERE wanted.seq > 1
),
advanced AS (
    UPDATE {schema}.catalog AS row
    SET seq = locked.seq, status = locked.status, holder = locked.holder,
        submitted_at = locked.submitted_at, started_at = locked.started_at,
        ended_at = locked.ended_at, metadata = locked.metadata, plan_digest = locked.plan_digest,
        error = locked.error, released = locked.released, kind = locked.kind, name = locked.name,
        queue = locked.queue, priority = locked.priority, parent = locked.parent,
        due_at = locked.due_at, tags = locked.tags, snapshot = locked.snapshot,
        digest = locked.digest
    FROM locked
    WHERE row.ctid = ANY (ARRAY(SELECT place FROM locked)) AND row.ctid = locked.place
    RETURNING locked.incarnation, locked.seq, locked.commit_id, locked.entry
),
-- Every transaction creates after it has its locks: creations of the same ids wait for each other.
created AS (
    INSERT INTO {schema}.catalog (
        workflow_id, incarnation, seq, status, holder, submitted_at, started_at, ended_at,
        metadata, plan_digest, error, released, kind, name, queue, priority, parent, due_at, tags,
        snapshot, digest
    )
    SELECT workflow_id, incarnation, seq, status, holder, submitted_at, started_at, ended_at,
        metadata, plan_digest, error, released, kind, name, queue, priority, parent, due_at, tags,
        snapshot, digest
    FROM wanted
    WHERE seq = 1 AND (SELECT pg_catalog.count(*) FROM locked) >= 0 AND NOT EXISTS (
        SELECT 1 FROM {schema}.tombstones WHERE tombstones.incarnation = wanted.incarnation
    )
    ON CONFLICT DO NOTHING
    RETURNING incarnation
),
appended AS (
    INSERT INTO {schema}.journal (incarnation, seq, commit_id, entry)
    SELECT incarnation, seq, commit_id, entry FROM advanced
    UNION ALL
    SELECT incarnation, seq, commit_id, entry FROM locked WHERE unchanged
    UNION ALL
    SELECT incarnation, seq, commit_id, entry FROM wanted
    WHERE incarnation IN (SELECT incarnation FROM created)
    RETURNING incarnation
)
SELECT pg_catalog.array_agg(incarnation), pg_catalog.set_config('synchronous_commit',
    CASE pg_catalog.current_setting('synchronous_commit')
        WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true)
FROM appended;

-- name: advance_one
-- As commit_appends, for one append to a workflow that exists.
WITH last AS MATERIALIZED (
    SELECT journal.seq FROM {schema}.journal
    WHERE journal.incarnation = %(incarnation)s AND journal.seq >= %(expected_seq)s
    ORDER BY journal.seq DESC
    LIMIT 1
    FOR UPDATE
),
advanced AS (
    UPDATE {schema}.catalog
    SET seq = %(seq)s, status = %(status)s, holder = %(holder)s, submitted_at = %(submitted_at)s,
        started_at = %(started_at)s, ended_at = %(ended_at)s, metadata = %(metadata)s,
        plan_digest = %(plan_digest)s, error = %(error)s, released = %(released)s,
        kind = %(kind)s, name = %(name)s, queue = %(queue)s, priority = %(priority)s,
        parent = %(parent)s, due_at = %(due_at)s, tags = %(tags)s, snapshot = %(snapshot)s,
        digest = %(digest)s
    WHERE workflow_id = %(workflow_id)s AND incarnation = %(incarnation)s
        AND (SELECT seq FROM last) = %(expected_seq)s
    RETURNING incarnation
)
INSERT INTO {schema}.journal (incarnation, seq, commit_id, entry)
SELECT incarnation, %(seq)s, %(commit_id)s, %(entry)b FROM advanced
RETURNING ARRAY[incarnation], pg_catalog.set_config('synchronous_commit',
    CASE pg_catalog.current_setting('synchronous_commit')
        WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true);

-- name: tell_holders
SELECT pg_catalog.pg_notify(%(channel)s, holder) FROM pg_catalog.unnest(%(holders)s::text[]) AS others (holder);

-- name: read_journal
SELECT seq, commit_id, entry FROM {schema}.journal
WHERE incarnation = %(incarnation)s AND seq > %(after)s
ORDER BY seq;

-- name: read_catalog
-- Appends that change only seq do not write the row: the journal has the true end.
SELECT workflow_id, incarnation, greatest(seq, (
        SELECT pg_catalog.max(journal.seq) FROM {schema}.journal
        WHERE journal.incarnation = catalog.incarnation
    )), status, holder, submitted_at, started_at, ended_at, metadata, plan_digest, error, released,
    kind, name, queue, priority, parent, due_at, tags, snapshot, digest, seq
FROM {schema}.catalog WHERE workflow_id = %(workflow_id)s;

-- name: list_page
-- The rows whose places one of the next queries finds. In braces stand other queries, and `ASC`, `>`
-- and `<=` or, with the newest first, `DESC`, `<` and `>=` (`listing.py`). Each row is found by
-- one index lookup: for a join, the planner may scan a large catalog.
SELECT found.workflow_id, found.incarnation, greatest(found.seq, (
        SELECT pg_catalog.max(journal.seq) FROM {schema}.journal
        WHERE journal.incarnation = found.incarnation
    )), found.status, found.holder, found.submitted_at, found.started_at, found.ended_at,
    found.metadata, found.plan_digest, found.error, found.released, found.kind, found.name,
    found.queue, found.priority, found.parent, found.due_at, found.tags,
    found.snapshot, found.digest, found.seq
FROM ({places}) AS place
CROSS JOIN LATERAL (
    SELECT * FROM {schema}.catalog WHERE catalog.workflow_id = place.workflow_id OFFSET 0
) AS found
ORDER BY place.submitted_at {order}, place.workflow_id {order};

-- name: places
-- It continues after (submitted_at, workflow_id).
SELECT submitted_at, workflow_id FROM {schema}.catalog
WHERE (submitted_at, workflow_id) {beyond} (%(submitted_at)s::double precision, %(workflow_id)s){conditions}
ORDER BY submitted_at {order}, workflow_id {order}
LIMIT %(limit)s;

-- name: places_by_status
-- As places. A page of each status is read from the index, and the pages are merged: one scan
-- would read all rows of the other statuses, or sort all of these. Written as a range and an order
-- of all columns, which no other index can serve: with an equality, the planner may scan the index by
-- submission and filter.
SELECT page.submitted_at, page.workflow_id
FROM pg_catalog.unnest(%(statuses)s::text[]) AS wanted (status)
CROSS JOIN LATERAL (
    SELECT submitted_at, workflow_id FROM {schema}.catalog
    WHERE (catalog.status, submitted_at, workflow_id)
            {beyond} (wanted.status, %(submitted_at)s::double precision, %(workflow_id)s)
        AND catalog.status {until} wanted.status{conditions}
    ORDER BY catalog.status {order}, submitted_at {order}, workflow_id {order}
    LIMIT %(limit)s
) AS page
ORDER BY page.submitted_at {order}, page.workflow_id {order}
LIMIT %(limit)s;

-- name: places_by_holder
-- As places_by_status, for each holder and status.
SELECT page.submitted_at, page.workflow_id
FROM pg_catalog.unnest(%(holders)s::text[]) AS owner (holder)
CROSS JOIN pg_catalog.unnest(%(statuses)s::text[]) AS wanted (status)
CROSS JOIN LATERAL (
    SELECT submitted_at, workflow_id FROM {schema}.catalog
    WHERE (catalog.holder, catalog.status, submitted_at, workflow_id)
            {beyond} (owner.holder, wanted.status, %(submitted_at)s::double precision, %(workflow_id)s)
        AND (catalog.holder, catalog.status) {until} (owner.holder, wanted.status){conditions}
    ORDER BY catalog.holder {order}, catalog.status {order}, submitted_at {order},
        workflow_id {order}
    LIMIT %(limit)s
) AS page
ORDER BY page.submitted_at {order}, page.workflow_id {order}
LIMIT %(limit)s;

-- name: places_by_tag
-- As places; one of the conditions below selects the tag and its value.
SELECT submitted_at, workflow_id FROM {schema}.catalog_tags
WHERE {tagged}
    AND (submitted_at, workflow_id) {beyond} (%(submitted_at)s::double precision, %(workflow_id)s){conditions}
ORDER BY submitted_at {order}, workflow_id {order}
LIMIT %(limit)s;

-- name: places_of_two
-- The union of two of these. No row has a tag twice.
SELECT submitted_at, workflow_id FROM ({first}) AS first
UNION ALL
SELECT submitted_at, workflow_id FROM ({second}) AS second
ORDER BY submitted_at {order}, workflow_id {order}
LIMIT %(limit)s;

-- name: tagged_rows
 AND EXISTS (
    SELECT 1 FROM {schema}.catalog WHERE catalog.workflow_id = catalog_tags.workflow_id{conditions}
);

-- name: count_page
SELECT pg_catalog.count(*) FROM {schema}.catalog WHERE true{conditions};

-- name: is_workflow
catalog.status <> 'NONE';

-- name: status_is_one
catalog.status = ANY (%(statuses)s::text[]);

-- name: holder_is_one
catalog.holder = ANY (%(holders)s::text[]);

-- name: text_is
-- "Not empty", and below "not a DAG", let the planner use the partial indices.
catalog.{column} = {text} AND catalog.{column} <> '';

-- name: text_begins
catalog.{column} >= {text} AND catalog.{column} < {end} AND catalog.{column} <> '';

-- name: text_there
catalog.{column} <> '';

-- name: text_is_common
catalog.{column} = {text};

-- name: kind_is
catalog.{column} = {text} AND catalog.{column} <> 'dag';

-- name: compares
catalog.{column} {operator} {number}::double precision;

-- name: tag_text_is
catalog_tags.tag = {tag} AND catalog_tags.text = {text};

-- name: tag_text_begins
catalog_tags.tag = {tag} AND catalog_tags.text >= {text} AND catalog_tags.text < {end};

-- name: tag_there
catalog_tags.tag = {tag};

-- name: tag_compares
catalog_tags.tag = {tag} AND catalog_tags.number {operator} {number}::double precision;

-- name: tag_of_row
EXISTS (
    SELECT 1 FROM {schema}.catalog_tags
    WHERE catalog_tags.workflow_id = catalog.workflow_id AND ({tagged})
);

-- name: lock_end
-- Before delete_workflow, in a statement of its own: the next statement sees appends made while this
-- one waited.
SELECT seq FROM {schema}.journal
WHERE incarnation = %(incarnation)s
ORDER BY seq DESC
LIMIT 1
FOR UPDATE;

-- name: delete_workflow
-- Deletes everything of the workflow, if the journal ends where the caller says, and with the locked
-- entry. Returns how many workflows there were.
WITH gone AS (
    DELETE FROM {schema}.catalog
    USING (
        SELECT pg_catalog.max(seq) AS seq FROM {schema}.journal WHERE incarnation = %(incarnation)s
    ) AS last
    WHERE workflow_id = %(workflow_id)s AND catalog.incarnation = %(incarnation)s
        AND greatest(catalog.seq, last.seq) = %(expected_seq)s
        AND last.seq IS NOT DISTINCT FROM %(locked_seq)s
    RETURNING catalog.incarnation
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
SELECT pg_catalog.count(*), pg_catalog.set_config('synchronous_commit',
    CASE pg_catalog.current_setting('synchronous_commit')
        WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true)
FROM gone;

-- name: write_blob
-- Writes a blob of one chunk; returns how many were written.
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
SELECT pg_catalog.count(*), pg_catalog.set_config('synchronous_commit',
    CASE pg_catalog.current_setting('synchronous_commit')
        WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true)
FROM header;

-- name: copy_chunks
COPY {schema}.blob_chunks (blob_id, number, data) FROM STDIN (FORMAT BINARY);

-- name: write_blob_header
-- Runs last, when all chunks are written. The time is that of completion, not of the beginning.
INSERT INTO {schema}.blobs (id, incarnation, key, size, checksum, written_at)
VALUES (%(id)s, %(incarnation)s, %(key)s, %(size)s, %(checksum)s, pg_catalog.clock_timestamp())
ON CONFLICT DO NOTHING
RETURNING id;

-- name: find_blob
SELECT key, size, checksum, id FROM {schema}.blobs
WHERE incarnation = %(incarnation)s AND key = %(key)s;

-- name: read_chunks
SELECT data FROM {schema}.blob_chunks WHERE blob_id = %(id)s ORDER BY number;

-- name: read_some_chunks
-- A part of a blob, for streaming: the server holds nothing open between two parts.
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
SELECT pg_catalog.count(*) FROM headers;

-- name: old_blobs
SELECT incarnation FROM {schema}.blobs
GROUP BY incarnation
HAVING pg_catalog.max(written_at) <= pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => %(grace_seconds)s)
ORDER BY incarnation;

-- name: bury_orphans
-- Incarnations with blobs but no workflow get a tombstone when the newest blob is old enough.
INSERT INTO {schema}.tombstones (incarnation)
SELECT incarnation FROM {schema}.blobs
WHERE NOT EXISTS (SELECT 1 FROM {schema}.catalog WHERE catalog.incarnation = blobs.incarnation)
GROUP BY incarnation
HAVING pg_catalog.max(written_at) <= pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => %(grace_seconds)s)
ON CONFLICT DO NOTHING;

-- name: has_buried
SELECT EXISTS (
    SELECT 1 FROM {schema}.tombstones
    WHERE EXISTS (SELECT 1 FROM {schema}.blobs WHERE blobs.incarnation = tombstones.incarnation)
);

-- name: lock_catalog
-- Waits for creations that began before the tombstones were written. Later creations see the
-- tombstones: after waiting for this lock, a transaction reads what is committed then.
LOCK TABLE {schema}.catalog IN SHARE MODE;

-- name: spare_created
DELETE FROM {schema}.tombstones
WHERE EXISTS (SELECT 1 FROM {schema}.catalog WHERE catalog.incarnation = tombstones.incarnation);

-- name: read_buried
SELECT DISTINCT incarnation FROM {schema}.blobs
WHERE incarnation IN (SELECT incarnation FROM {schema}.tombstones)
    AND NOT EXISTS (SELECT 1 FROM {schema}.catalog WHERE catalog.incarnation = blobs.incarnation);

-- name: remove_tombstones
-- Kept long after the sweep: a late submission may still arrive.
DELETE FROM {schema}.tombstones
WHERE buried_at < pg_catalog.clock_timestamp() - interval '30 days'
    AND NOT EXISTS (SELECT 1 FROM {schema}.blobs WHERE blobs.incarnation = tombstones.incarnation);

-- name: has_workflows
SELECT EXISTS (SELECT 1 FROM {schema}.catalog);

-- name: renew_holder
INSERT INTO {schema}.holders (holder_id, coordinator, host, pid, started_ticks, lease_until)
VALUES (%(holder_id)s, %(coordinator)s, %(host)s, %(pid)s, %(started_ticks)s,
    extract(epoch FROM pg_catalog.clock_timestamp())::double precision + %(lease_seconds)s)
ON CONFLICT (holder_id) DO UPDATE
SET coordinator = excluded.coordinator, host = excluded.host, pid = excluded.pid,
    started_ticks = excluded.started_ticks, lease_until = excluded.lease_until;

-- name: remove_holder
DELETE FROM {schema}.holders WHERE holder_id = %(holder_id)s;

-- name: read_holders
SELECT holder_id, coordinator, host, pid, started_ticks, lease_until
FROM {schema}.holders ORDER BY holder_id;

-- name: now
SELECT extract(epoch FROM pg_catalog.clock_timestamp())::double precision;
