-- What the operator wants of the group: paused, by whom, whether there is a request to look at, how many lanes.
SELECT paused_at IS NOT NULL, coalesce(paused_by, ''), request, lanes FROM inbox.consumer WHERE "group" = $1
