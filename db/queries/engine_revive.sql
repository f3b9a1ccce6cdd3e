-- Puts one that is over back among those that are alive
SELECT saga.revive($1::uuid)
