SELECT inbox.replay_begun($1, $2, $3, $4)
