-- Instances by name and state
SELECT name, state, n FROM saga.counts()
