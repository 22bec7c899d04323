-- The queries of SqliteStorage, by name. Catalog columns come in the order of CatalogRow.

-- name: configure_connection
-- FULL: a commit is on the disk before it is acknowledged; the next two are what that takes on
-- macOS. The limit gives the disk space of an exceptionally large commit back.
PRAGMA synchronous = FULL;
PRAGMA fullfsync = ON;
PRAGMA checkpoint_fullfsync = ON;
PRAGMA journal_size_limit = 67108864;

-- name: read_application_id
PRAGMA application_id;

-- name: read_schema_version
PRAGMA user_version;

-- name: create_workflow
INSERT INTO catalog (
    workflow_id, incarnation, seq, status, holder, submitted_at, started_at, ended_at,
    metadata, plan_digest, error, released
)
SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12
WHERE NOT EXISTS (SELECT 1 FROM tombstones WHERE incarnation = ?2)
ON CONFLICT DO NOTHING;

-- name: advance_workflow
-- The fence: no row is changed unless the journal ends at ?13.
UPDATE catalog
SET seq = ?3, status = ?4, holder = ?5, submitted_at = ?6, started_at = ?7, ended_at = ?8,
    metadata = ?9, plan_digest = ?10, error = ?11, released = ?12
WHERE workflow_id = ?1 AND incarnation = ?2 AND seq = ?13;

-- name: append_entry
INSERT INTO journal (incarnation, seq, commit_id, entry) VALUES (?1, ?2, ?3, ?4);

-- name: read_journal
SELECT seq, commit_id, entry FROM journal WHERE incarnation = ?1 AND seq > ?2 ORDER BY seq;

-- name: read_catalog
SELECT workflow_id, incarnation, seq, status, holder, submitted_at, started_at, ended_at,
    metadata, plan_digest, error, released
FROM catalog WHERE workflow_id = ?1;

-- name: list_catalog
-- ?1, ?2: where to continue; ?3: JSON array of holders or NULL; ?4: how many rows.
SELECT workflow_id, incarnation, seq, status, holder, submitted_at, started_at, ended_at,
    metadata, plan_digest, error, released
FROM catalog
WHERE (submitted_at, workflow_id) > (?1, ?2)
    AND (?3 IS NULL OR holder IN (SELECT value FROM json_each(?3)))
ORDER BY submitted_at, workflow_id
LIMIT ?4;

-- name: list_catalog_by_status
-- As list_catalog; ?5: JSON array of statuses. A page of each status is read from the index and the
-- pages are merged: one scan would pass over all rows of the other statuses, or sort all of these.
SELECT found.workflow_id, found.incarnation, found.seq, found.status, found.holder,
    found.submitted_at, found.started_at, found.ended_at, found.metadata, found.plan_digest,
    found.error, found.released
FROM json_each(?5) AS wanted
CROSS JOIN catalog AS found
WHERE found.id IN (
    SELECT page.id FROM catalog AS page
    WHERE page.status = wanted.value
        AND (page.submitted_at, page.workflow_id) > (?1, ?2)
        AND (?3 IS NULL OR page.holder IN (SELECT value FROM json_each(?3)))
    ORDER BY page.submitted_at, page.workflow_id
    LIMIT ?4
)
ORDER BY found.submitted_at, found.workflow_id
LIMIT ?4;

-- name: delete_workflow
DELETE FROM catalog WHERE workflow_id = ?1 AND incarnation = ?2 AND seq = ?3;

-- name: delete_journal
DELETE FROM journal WHERE incarnation = ?1;

-- name: write_tombstone
INSERT INTO tombstones (incarnation, deleted_at) VALUES (?1, ?2) ON CONFLICT DO NOTHING;

-- name: write_orphan_tombstone
-- For blobs without a workflow; writes nothing if the workflow has come to be.
INSERT INTO tombstones (incarnation, deleted_at)
SELECT ?1, ?2
WHERE NOT EXISTS (SELECT 1 FROM catalog WHERE incarnation = ?1)
ON CONFLICT DO NOTHING;

-- name: read_tombstones
SELECT incarnation FROM tombstones ORDER BY deleted_at, incarnation;

-- name: remove_tombstone
DELETE FROM tombstones WHERE incarnation = ?1;

-- name: has_incarnation
SELECT 1 FROM catalog WHERE incarnation = ?1;

-- name: renew_holder
INSERT INTO holders (holder_id, coordinator, host, pid, started_ticks, lease_until)
VALUES (?1, ?2, ?3, ?4, ?5, ?6)
ON CONFLICT (holder_id) DO UPDATE
SET coordinator = excluded.coordinator, host = excluded.host, pid = excluded.pid,
    started_ticks = excluded.started_ticks, lease_until = excluded.lease_until;

-- name: remove_holder
DELETE FROM holders WHERE holder_id = ?1;

-- name: read_holders
SELECT holder_id, coordinator, host, pid, started_ticks, lease_until
FROM holders ORDER BY holder_id;
