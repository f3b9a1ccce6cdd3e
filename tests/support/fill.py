"""tests/support/fill.py -- a million rows in seconds: no trigger fires, nothing is logged, the indexes are made after.

Refuses to leave an index or a primary key out; what is not put back are the foreign keys, and that a crash keeps the rows.
"""
OF = """
SELECT format('ALTER TABLE %%s DROP CONSTRAINT %%I', c.conrelid::regclass, c.conname), NULL
FROM pg_constraint AS c
WHERE c.contype = 'f' AND (c.conrelid = ANY (%(tables)s::regclass[]) OR c.confrelid = ANY (%(tables)s::regclass[]))
UNION ALL
SELECT * FROM (
    SELECT CASE WHEN c.oid IS NULL THEN format('DROP INDEX %%s', i.indexrelid::regclass)
        ELSE format('ALTER TABLE %%s DROP CONSTRAINT %%I', c.conrelid::regclass, c.conname) END,
        CASE WHEN c.oid IS NULL THEN pg_get_indexdef(i.indexrelid)
        ELSE format('ALTER TABLE %%s ADD CONSTRAINT %%I %%s', c.conrelid::regclass, c.conname, pg_get_constraintdef(c.oid)) END
    FROM pg_index AS i
    LEFT JOIN pg_constraint AS c ON c.conindid = i.indexrelid AND c.contype IN ('p', 'u', 'x')
    WHERE i.indrelid = ANY (%(tables)s::regclass[])
    ORDER BY i.indisprimary DESC, i.indexrelid) AS i
"""


def fill(db, tables, sql):
    """sql puts rows into the tables; the planner then knows them."""
    found = db.query(OF, {"tables": list(tables)})
    db.psql(";\n".join([
        "SET session_replication_role = replica; SET maintenance_work_mem = '256MB'; SET synchronous_commit = off",
        *(drop for drop, _ in found), *(f"ALTER TABLE {t} SET UNLOGGED" for t in tables), sql.strip().rstrip(";"),
        *(make for _, make in found if make), f"ANALYZE {', '.join(tables)}"]))
