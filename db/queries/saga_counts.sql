-- How many there are by name and state; of end states how many ended so, ever.
SELECT c.name, c.state, c.n FROM saga.counts() AS c WHERE c.n <> 0
