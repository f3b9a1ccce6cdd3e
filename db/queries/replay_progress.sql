SELECT inbox.replay_progress($1, $2, $3, $4, $5, $6)
