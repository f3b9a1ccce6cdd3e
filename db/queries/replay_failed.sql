SELECT inbox.replay_failed($1, $2)
