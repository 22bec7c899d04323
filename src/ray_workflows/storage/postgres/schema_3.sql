-- Version 3: what workflows are listed by.

-- It adds, and changes nothing: a coordinator of a release before goes on, and what it writes has the
-- defaults. Triggers keep catalog_tags, so that a deletion by such a release leaves nothing there.
ALTER TABLE {schema}.catalog
    ADD COLUMN kind text COLLATE "C" NOT NULL DEFAULT 'dag',
    ADD COLUMN name text COLLATE "C" NOT NULL DEFAULT '',
    ADD COLUMN queue text COLLATE "C" NOT NULL DEFAULT '',
    ADD COLUMN priority bigint NOT NULL DEFAULT 0,
    ADD COLUMN parent text COLLATE "C" NOT NULL DEFAULT '',
    ADD COLUMN due_at double precision,
    ADD COLUMN tags text NOT NULL DEFAULT '{}',  -- JSON
    ADD COLUMN snapshot bigint NOT NULL DEFAULT 0;

-- Only of rows that have something to be found by: a submission writes to no index that it needs
-- not. Nearly all workflows are DAGs, and found in the order of their submission.
CREATE INDEX catalog_by_kind ON {schema}.catalog (kind, submitted_at, workflow_id)
    WHERE kind <> 'dag';
CREATE INDEX catalog_by_name ON {schema}.catalog (name, submitted_at, workflow_id)
    WHERE name <> '';
CREATE INDEX catalog_by_queue ON {schema}.catalog (queue, submitted_at, workflow_id)
    WHERE queue <> '';
CREATE INDEX catalog_by_parent ON {schema}.catalog (parent, submitted_at, workflow_id)
    WHERE parent <> '';
CREATE INDEX catalog_by_end ON {schema}.catalog (ended_at, submitted_at, workflow_id)
    WHERE ended_at IS NOT NULL;

-- The tags of each row, to find rows by. A number has no text, and a text no number.
CREATE TABLE {schema}.catalog_tags (
    workflow_id text COLLATE "C" NOT NULL,
    tag text COLLATE "C" NOT NULL,
    text text COLLATE "C",
    number double precision,
    submitted_at double precision NOT NULL,
    PRIMARY KEY (workflow_id, tag)
);

CREATE INDEX catalog_tags_by_text ON {schema}.catalog_tags (tag, text, submitted_at, workflow_id)
    WHERE text IS NOT NULL;
CREATE INDEX catalog_tags_by_number
    ON {schema}.catalog_tags (tag, number, submitted_at, workflow_id) WHERE number IS NOT NULL;

-- With the rights of the tables' owner: a user who may write the catalog needs none in addition.
CREATE FUNCTION {schema}.write_tags() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ray_workflows$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        DELETE FROM {schema}.catalog_tags WHERE workflow_id = OLD.workflow_id;
    END IF;
    IF TG_OP <> 'DELETE' THEN
        INSERT INTO {schema}.catalog_tags (workflow_id, tag, text, number, submitted_at)
        SELECT NEW.workflow_id, given.key,
            CASE WHEN json_typeof(given.value) IN ('string', 'boolean') THEN given.value #>> '{}' END,
            CASE WHEN json_typeof(given.value) = 'number'
                THEN (given.value #>> '{}')::double precision END,
            NEW.submitted_at
        FROM json_each(NEW.tags::json) AS given;
    END IF;
    RETURN NULL;
END
$ray_workflows$;

CREATE TRIGGER tags_of_new AFTER INSERT ON {schema}.catalog
FOR EACH ROW WHEN (NEW.tags <> '{}') EXECUTE FUNCTION {schema}.write_tags();

CREATE TRIGGER tags_of_changed AFTER UPDATE ON {schema}.catalog
FOR EACH ROW WHEN (OLD.tags <> NEW.tags OR OLD.submitted_at <> NEW.submitted_at)
EXECUTE FUNCTION {schema}.write_tags();

CREATE TRIGGER tags_of_deleted AFTER DELETE ON {schema}.catalog
FOR EACH ROW WHEN (OLD.tags <> '{}') EXECUTE FUNCTION {schema}.write_tags();
