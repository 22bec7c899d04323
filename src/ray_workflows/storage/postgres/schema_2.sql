-- Version 2: what tells a damaged catalog row.

-- The row's seq, a colon, and a checksum of the row (`rows.row_digest`). Releases before 0.2.0
-- don't know it: a row that they write has another seq than its digest, and is believed.
ALTER TABLE {schema}.catalog ADD COLUMN digest text NOT NULL DEFAULT '';
