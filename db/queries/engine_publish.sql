-- Commands and events; see saga.publish
SELECT saga.publish(NULL, $1, $2, $3, $4, $5, $6)
