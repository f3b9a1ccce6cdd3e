#!/usr/bin/python3
"""bench/listeners/loop.py -- what services write today: per record a dedupe row, the update when it was new, a
database commit and an offset commit. Refuses to go on after any error. Ends when it is killed.

    loop.py BROKERS GROUP TOPIC CONNINFO"""
import sys

import psycopg2
from confluent_kafka import Consumer

SEEN = "INSERT INTO bench.processed VALUES (%s) ON CONFLICT DO NOTHING"
EFFECT = "UPDATE bench.account SET n = n + 1, amount = amount + (%s::jsonb ->> 'amount')::bigint WHERE key = %s"


def main(brokers, group, topic, conninfo):
    pg = psycopg2.connect(conninfo)
    cur = pg.cursor()
    c = Consumer({"bootstrap.servers": brokers, "group.id": group, "enable.auto.commit": False,
                  "auto.offset.reset": "earliest", "partition.assignment.strategy": "range"})
    c.subscribe([topic])
    while True:
        m = c.poll(0.2)
        if m is None:
            continue
        if m.error():
            raise RuntimeError(m.error())
        cur.execute(SEEN, (dict(m.headers())["id"].decode(),))
        if cur.rowcount == 1:
            cur.execute(EFFECT, (m.value().decode(), m.key().decode()))
        pg.commit()
        c.commit(m, asynchronous=False)


main(*sys.argv[1:])
