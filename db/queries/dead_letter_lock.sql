-- One member of a group publishes its dead letters; held by the session.
SELECT pg_try_advisory_lock(hashtext('postrider dead letters'), hashtext($1))
