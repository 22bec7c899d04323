-- Version 3: what workflows are listed by.

-- It adds, and changes nothing: a coordinator of a release before goes on, and what it writes has the
-- defaults. Triggers keep catalog_tags, so that a deletion by such a release leaves nothing there.
ALTER TABLE catalog ADD COLUMN kind TEXT NOT NULL DEFAULT 'dag';
ALTER TABLE catalog ADD COLUMN name TEXT NOT NULL DEFAULT '';
ALTER TABLE catalog ADD COLUMN queue TEXT NOT NULL DEFAULT '';
ALTER TABLE catalog ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;
ALTER TABLE catalog ADD COLUMN parent TEXT NOT NULL DEFAULT '';
ALTER TABLE catalog ADD COLUMN due_at REAL;
ALTER TABLE catalog ADD COLUMN tags TEXT NOT NULL DEFAULT '{}';  -- JSON
ALTER TABLE catalog ADD COLUMN snapshot INTEGER NOT NULL DEFAULT 0;

-- Only of rows that have something to be found by: a submission writes to no index that it needs
-- not. Nearly all workflows are DAGs, and found in the order of their submission.
CREATE INDEX catalog_by_kind ON catalog (kind, submitted_at, workflow_id) WHERE kind <> 'dag';
CREATE INDEX catalog_by_name ON catalog (name, submitted_at, workflow_id) WHERE name <> '';
CREATE INDEX catalog_by_queue ON catalog (queue, submitted_at, workflow_id) WHERE queue <> '';
CREATE INDEX catalog_by_parent ON catalog (parent, submitted_at, workflow_id) WHERE parent <> '';
CREATE INDEX catalog_by_end ON catalog (ended_at, submitted_at, workflow_id)
    WHERE ended_at IS NOT NULL;

-- The tags of each row, to find rows by. A number has no text, and a text no number.
CREATE TABLE catalog_tags (
    row_id INTEGER NOT NULL,
    tag TEXT NOT NULL,
    text TEXT,
    number REAL,
    submitted_at REAL NOT NULL,
    workflow_id TEXT NOT NULL,
    PRIMARY KEY (row_id, tag)
) WITHOUT ROWID;

CREATE INDEX catalog_tags_by_text ON catalog_tags (tag, text, submitted_at, workflow_id)
    WHERE text IS NOT NULL;
CREATE INDEX catalog_tags_by_number ON catalog_tags (tag, number, submitted_at, workflow_id)
    WHERE number IS NOT NULL;

CREATE TRIGGER tags_of_new AFTER INSERT ON catalog WHEN NEW.tags <> '{}'
BEGIN
    INSERT INTO catalog_tags (row_id, tag, text, number, submitted_at, workflow_id)
    SELECT NEW.id, key, CASE type WHEN 'text' THEN atom WHEN 'true' THEN type WHEN 'false' THEN type END,
        CASE WHEN type IN ('integer', 'real') THEN CAST(atom AS REAL) END,
        NEW.submitted_at, NEW.workflow_id
    FROM json_each(NEW.tags);
END;

CREATE TRIGGER tags_of_changed AFTER UPDATE OF tags, submitted_at ON catalog
WHEN OLD.tags <> NEW.tags OR OLD.submitted_at <> NEW.submitted_at
BEGIN
    DELETE FROM catalog_tags WHERE row_id = OLD.id;
    INSERT INTO catalog_tags (row_id, tag, text, number, submitted_at, workflow_id)
    SELECT NEW.id, key, CASE type WHEN 'text' THEN atom WHEN 'true' THEN type WHEN 'false' THEN type END,
        CASE WHEN type IN ('integer', 'real') THEN CAST(atom AS REAL) END,
        NEW.submitted_at, NEW.workflow_id
    FROM json_each(NEW.tags);
END;

CREATE TRIGGER tags_of_deleted AFTER DELETE ON catalog WHEN OLD.tags <> '{}'
BEGIN
    DELETE FROM catalog_tags WHERE row_id = OLD.id;
END;
