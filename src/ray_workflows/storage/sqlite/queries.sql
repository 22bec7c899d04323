-- The queries of SqliteStorage, by name. Catalog columns come in the order of CatalogRow, then as
-- `rows.decode_row` takes them.

-- name: configure_connection
-- FULL: a commit is on the disk before it is acknowledged; macOS needs the next two for that. The
-- limit frees the disk space after an exceptionally large commit.
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
    metadata, plan_digest, error, released, kind, name, queue, priority, parent, due_at, tags,
    snapshot, digest
)
SELECT :workflow_id, :incarnation, :seq, :status, :holder, :submitted_at, :started_at, :ended_at,
    :metadata, :plan_digest, :error, :released, :kind, :name, :queue, :priority, :parent, :due_at,
    :tags, :snapshot, :digest
WHERE NOT EXISTS (SELECT 1 FROM tombstones WHERE incarnation = :incarnation)
ON CONFLICT DO NOTHING;

-- name: advance_workflow
-- The fence: no row is changed unless the journal ends at expected_seq.
UPDATE catalog
SET seq = :seq, status = :status, holder = :holder, submitted_at = :submitted_at,
    started_at = :started_at, ended_at = :ended_at, metadata = :metadata,
    plan_digest = :plan_digest, error = :error, released = :released, kind = :kind, name = :name,
    queue = :queue, priority = :priority, parent = :parent, due_at = :due_at, tags = :tags,
    snapshot = :snapshot, digest = :digest
WHERE workflow_id = :workflow_id AND incarnation = :incarnation AND seq = :expected_seq;

-- name: touch_workflow
-- As advance_workflow, if no column of a full index and no tag changes. SQLite rewrites the indices of
-- every column that is set, even to the same value.
UPDATE catalog
SET seq = :seq, holder = :holder, started_at = :started_at, ended_at = :ended_at,
    metadata = :metadata, plan_digest = :plan_digest, error = :error, released = :released,
    priority = :priority, due_at = :due_at, snapshot = :snapshot, digest = :digest
WHERE workflow_id = :workflow_id AND incarnation = :incarnation AND seq = :expected_seq
    AND status = :status AND submitted_at = :submitted_at AND kind = :kind AND name = :name
    AND queue = :queue AND parent = :parent AND tags = :tags;

-- name: append_entry
INSERT INTO journal (incarnation, seq, commit_id, entry) VALUES (?, ?, ?, ?);

-- name: begin_guess
SAVEPOINT guess;

-- name: end_guess
RELEASE guess;

-- name: undo_guess
ROLLBACK TO guess;

-- name: read_journal
SELECT seq, commit_id, entry FROM journal
WHERE incarnation = :incarnation AND seq > :after
ORDER BY seq;

-- name: read_catalog
SELECT workflow_id, incarnation, seq, status, holder, submitted_at, started_at, ended_at,
    metadata, plan_digest, error, released, kind, name, queue, priority, parent, due_at, tags,
    snapshot, digest, seq
FROM catalog WHERE workflow_id = :workflow_id;

-- name: list_page
-- The rows whose places one of the next queries finds. In braces stand other queries, and `ASC` and `>`
-- or, with the newest first, `DESC` and `<` (`listing.py`).
SELECT found.workflow_id, found.incarnation, found.seq, found.status, found.holder,
    found.submitted_at, found.started_at, found.ended_at, found.metadata, found.plan_digest,
    found.error, found.released, found.kind, found.name, found.queue, found.priority,
    found.parent, found.due_at, found.tags, found.snapshot, found.digest, found.seq
FROM ({places}) AS place
CROSS JOIN catalog AS found ON found.id = place.id
ORDER BY place.submitted_at {order}, place.workflow_id {order};

-- name: places
-- It continues after (submitted_at, workflow_id). statuses and holders, here and below, are JSON arrays.
SELECT id, submitted_at, workflow_id FROM catalog
WHERE (submitted_at, workflow_id) {beyond} (:submitted_at, :workflow_id){conditions}
ORDER BY submitted_at {order}, workflow_id {order}
LIMIT :limit;

-- name: places_in_order
-- As places, if many rows match: a scan in the listing's order finds a page of them soon.
SELECT id, submitted_at, workflow_id FROM catalog INDEXED BY catalog_by_submission
WHERE (submitted_at, workflow_id) {beyond} (:submitted_at, :workflow_id){conditions}
ORDER BY submitted_at {order}, workflow_id {order}
LIMIT :limit;

-- name: places_sorted
-- As places, if few rows match: they are read from another index, and sorted. The plus keeps SQLite
-- from scanning all rows in the listing's order.
SELECT id, submitted_at, workflow_id FROM catalog
WHERE (+submitted_at, +workflow_id) {beyond} (:submitted_at, :workflow_id){conditions}
ORDER BY +submitted_at {order}, +workflow_id {order}
LIMIT :limit;

-- name: some_rows
-- How many rows match a condition, counted up to `most`.
SELECT count(*) FROM (SELECT 1 FROM catalog WHERE {condition} LIMIT :most);

-- name: places_by_status
-- As places. A page of each status is read from the index, and the pages are merged: one scan would
-- read all rows of the other statuses, or sort all of these.
SELECT some.id, some.submitted_at, some.workflow_id
FROM json_each(:statuses) AS wanted
CROSS JOIN catalog AS some
WHERE some.id IN (
    SELECT id FROM catalog
    WHERE status = wanted.value
        AND (submitted_at, workflow_id) {beyond} (:submitted_at, :workflow_id){conditions}
    ORDER BY submitted_at {order}, workflow_id {order}
    LIMIT :limit
)
ORDER BY some.submitted_at {order}, some.workflow_id {order}
LIMIT :limit;

-- name: places_by_tag
-- As places; one of the conditions below selects the tag and its value.
SELECT row_id AS id, submitted_at, workflow_id FROM catalog_tags
WHERE {tagged} AND (submitted_at, workflow_id) {beyond} (:submitted_at, :workflow_id){conditions}
ORDER BY submitted_at {order}, workflow_id {order}
LIMIT :limit;

-- name: places_of_two
-- The union of two of these. No row has a tag twice.
SELECT id, submitted_at, workflow_id FROM ({first})
UNION ALL
SELECT id, submitted_at, workflow_id FROM ({second})
ORDER BY submitted_at {order}, workflow_id {order}
LIMIT :limit;

-- name: tagged_rows
 AND EXISTS (SELECT 1 FROM catalog WHERE catalog.id = catalog_tags.row_id{conditions});

-- name: count_page
SELECT count(*) FROM catalog WHERE true{conditions};

-- name: is_workflow
catalog.status <> 'NONE';

-- name: status_is_one
-- The plus keeps SQLite from using the index of statuses, whose rows it would have to sort.
+catalog.status IN (SELECT value FROM json_each(:statuses));

-- name: holder_is_one
catalog.holder IN (SELECT value FROM json_each(:holders));

-- name: text_is
-- "Not empty", and below "not a DAG", let SQLite use the partial indices.
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
catalog.{column} {operator} {number};

-- name: tag_text_is
catalog_tags.tag = {tag} AND catalog_tags.text = {text};

-- name: tag_text_begins
catalog_tags.tag = {tag} AND catalog_tags.text >= {text} AND catalog_tags.text < {end};

-- name: tag_there
catalog_tags.tag = {tag};

-- name: tag_compares
catalog_tags.tag = {tag} AND catalog_tags.number {operator} {number};

-- name: tag_of_row
EXISTS (SELECT 1 FROM catalog_tags WHERE catalog_tags.row_id = catalog.id AND ({tagged}));

-- name: delete_workflow
DELETE FROM catalog
WHERE workflow_id = :workflow_id AND incarnation = :incarnation AND seq = :expected_seq;

-- name: read_sizes
-- The first entries of a journal, to be deleted in one transaction.
SELECT seq, length(entry) FROM journal WHERE incarnation = :incarnation ORDER BY seq LIMIT :limit;

-- name: delete_entries
DELETE FROM journal WHERE incarnation = :incarnation AND seq <= :last;

-- name: write_tombstone
INSERT INTO tombstones (incarnation, deleted_at) VALUES (:incarnation, :deleted_at)
ON CONFLICT DO NOTHING;

-- name: write_orphan_tombstone
-- For blobs without a workflow; writes nothing if the workflow exists by now.
INSERT INTO tombstones (incarnation, deleted_at)
SELECT :incarnation, :deleted_at
WHERE NOT EXISTS (SELECT 1 FROM catalog WHERE incarnation = :incarnation)
ON CONFLICT DO NOTHING;

-- name: read_tombstones
SELECT incarnation FROM tombstones ORDER BY deleted_at, incarnation;

-- name: remove_tombstone
DELETE FROM tombstones WHERE incarnation = :incarnation;

-- name: has_workflows
SELECT EXISTS (SELECT 1 FROM catalog);

-- name: has_incarnation
SELECT 1 FROM catalog WHERE incarnation = :incarnation;

-- name: renew_holder
INSERT INTO holders (holder_id, coordinator, host, pid, started_ticks, lease_until)
VALUES (:holder_id, :coordinator, :host, :pid, :started_ticks, :lease_until)
ON CONFLICT (holder_id) DO UPDATE
SET coordinator = excluded.coordinator, host = excluded.host, pid = excluded.pid,
    started_ticks = excluded.started_ticks, lease_until = excluded.lease_until;

-- name: remove_holder
DELETE FROM holders WHERE holder_id = :holder_id;

-- name: read_holders
SELECT holder_id, coordinator, host, pid, started_ticks, lease_until
FROM holders ORDER BY holder_id;
