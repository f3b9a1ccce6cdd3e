-- What the operator wants of the group: paused, by whom, and whether there is a request to look at.
SELECT paused_at IS NOT NULL, coalesce(paused_by, ''), request FROM inbox.consumer WHERE "group" = $1
