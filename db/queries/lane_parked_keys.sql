SELECT topic, partition, key_bytes FROM inbox.parked_keys($1, $2, $3, $4, $5)
