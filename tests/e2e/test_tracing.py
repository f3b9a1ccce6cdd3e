"""tests/e2e/test_tracing.py -- one trace from the HTTP request over the row, the relay and a consumer to the topic
of what its handler published; and a collector that is away, slow, busy or mad, at which nobody waits."""
import json
import os
import uuid

import pytest
import servers
from collector import Collector
from inbox import Inbox
from outbox import Outbox, header, unique
from service import Api, Service
from wait import wait_until

pytestmark = pytest.mark.timeout(240)
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GIVEN = f"00-{TRACE}-{SPAN}-01"
UNSAMPLED = f"00-{TRACE}-{SPAN}-00"
SECRET = "do-not-show-4711"
PRODUCER, CONSUMER = 4, 5


@pytest.fixture
def collector():
    """collector(judge, port=...) starts one."""
    made = []

    def make(*args, **more):
        made.append(Collector(*args, **more))
        return made[-1]
    yield make
    for c in made:
        c.close()


@pytest.fixture
def outbox(pg_server, kafka):
    """outbox(tracing, delivery=..., **config): one whose relay is not yet started."""
    made = []

    def make(tracing=None, delivery="exactly_once", **config):
        made.append(Outbox(pg_server, kafka, "tc", delivery=delivery, config={**({"tracing": tracing} if tracing else {}), **config}))
        return made[-1]
    yield make
    for o in made:
        o.close()


@pytest.fixture
def box(pg_server, kafka):
    made = []

    def make(**more):
        made.append(Inbox(pg_server, kafka, word="ti", **more))
        return made[-1]
    yield make
    for b in made:
        b.close()


def to(collector, **more):
    return {"endpoint": collector.url, **more}


def wait_spans(collector, n, timeout=60, **where):
    return wait_until(lambda: (lambda s: s if len(s) >= n else None)(collector.spans(**where)), timeout, f"{n} spans {where}")


def counted(daemon):
    """{outcome: spans}"""
    text = daemon.get("/metrics")[1]
    return {o: sum(float(line.split()[-1]) for line in text.splitlines()
                   if line.startswith("postrider_tracing_spans_total") and f'outcome="{o}"' in line)
            for o in ("sent", "dropped", "refused")}


def test_from_the_request_to_the_second_topic(outbox, kafka, collector):
    """A client's traceparent goes through the service's row and the record; the relay's span and the consumer's are
    its children, and what the handler publishes is the consumer's child, with a relay and a consumer of its own."""
    got, word = collector(), unique("tw")
    first = outbox(to(got, service="first-relay"), route={"topic": word + ".${aggregatetype}"})
    second = outbox(to(got, service="second-relay"))
    topic = kafka.create_topic(word + ".user")
    kind, second_topic = second.kind()
    second.db.psql(f"""CREATE SCHEMA app;
        CREATE FUNCTION app.greet(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
        BEGIN PERFORM outbox.publish('{kind}', m.key, 'Greeted', '{{}}'); END $$;
        CREATE FUNCTION app.see(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$ BEGIN END $$;""")
    daemons = [Service("user", first.db.conninfo, config={"password": {"passes": 1, "memory": "8kB"}}), first.relay, second.relay]
    for group, where, function in (("greeter", topic, "app.greet"), ("seer", second_topic, "app.see")):
        daemons.append(servers.Consumer(second.db.conninfo, kafka.bootstrap, unique(group), [where],
                                        {"kind": "sql", "function": function}, config={"tracing": to(got, service=group)}))
    try:
        for d in daemons:
            d.start()
        for d in daemons:
            d.wait_ready()
        api = Api(daemons[0].port)
        body = {"email": f"{SECRET}@example.org", "password": "secret-1", "name": "Ann"}
        # Malformed: as if none had come, and nobody's failure.
        assert api.post("/users", {**body, "email": "b@example.org"}, headers={"traceparent": GIVEN.upper()}).status == 201
        assert api.post("/users", body, headers={"traceparent": GIVEN}).status == 201
        assert first.sql("SELECT tracingspancontext FROM outbox.event ORDER BY seq") == [(None,), (GIVEN,)]
        wait_spans(got, 8)  # both users' four: another lane may be the slower one
        sent, greeted, sent_on, seen = sorted(got.spans(trace=TRACE), key=lambda s: (s.resource["service.name"] in ("second-relay", "seer"), s.kind))
    finally:
        for d in daemons:
            d.kill()
    assert [s.resource["service.name"] for s in (sent, greeted, sent_on, seen)] == ["first-relay", "greeter", "second-relay", "seer"]
    assert (sent.kind, sent.name, sent.parent) == (PRODUCER, f"send {topic}", SPAN)
    assert (greeted.kind, greeted.name, greeted.parent) == (CONSUMER, f"process {topic}", SPAN)
    assert (sent_on.kind, sent_on.name, sent_on.parent) == (PRODUCER, f"send {second_topic}", greeted.id)
    assert (seen.kind, seen.name, seen.parent) == (CONSUMER, f"process {second_topic}", greeted.id)
    assert len({s.id for s in got.spans()}) == len(got.spans())
    assert f"00-{TRACE}-{greeted.id}-01".encode() in [header(r, "traceparent") for r in second.read(second_topic, 2)]
    assert sent.attributes["messaging.message.id"] == greeted.attributes["messaging.message.id"]
    assert greeted.attributes["postrider.outcome"] == "handled" and greeted.status == {}
    assert greeted.attributes["messaging.consumer.group.name"] == daemons[3].group
    assert SECRET not in repr(got.taken)
    # The one without: its trace has its own id.
    (root,) = [s for s in got.spans(kind=PRODUCER, name=f"send {topic}") if s.trace != TRACE]
    assert root.parent is None and root.trace == root.attributes["messaging.message.id"].replace("-", "")
    assert [s.parent for s in got.spans(kind=CONSUMER, name=f"process {topic}", trace=root.trace)] == [root.id]


@pytest.mark.asan
@pytest.mark.tsan
@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
def test_what_a_relay_says(outbox, collector, delivery):
    """Each sampled event once, where it stands; one that said not sampled, none; a parked one when it is released."""
    got = collector()
    o = outbox(to(got), delivery)
    kind, topic = o.kind(partitions=3)
    ids = [o.publish(kind, f"{SECRET}{i}", payload=json.dumps({"s": SECRET})) for i in range(20)]
    with o.conn.cursor() as cur:
        for i, trace in enumerate((GIVEN, UNSAMPLED, "#Tue\ntraceparent=" + GIVEN + "\n", "rubbish")):
            ids.append(str(uuid.uuid4()))
            cur.execute("INSERT INTO outbox.event (id, aggregatetype, aggregateid, type, payload, tracingspancontext) "
                        "VALUES (%s, %s, %s, 'T', '{}', %s)", (ids[-1], kind, f"t{i}", trace))
    o.start()
    records = {header(r, "id").decode(): r for r in o.read(topic, 24)}
    wait_spans(got, 23)
    o.stop()
    spans = {s.attributes["messaging.message.id"]: s for s in got.spans()}
    assert len(got.spans()) == 23 and set(spans) == set(ids) - {ids[21]}
    for i, s in spans.items():
        r = records[i]
        a = s.attributes
        assert (s.kind, a["messaging.system"], a["messaging.destination.name"], a["messaging.operation.type"]) == \
            (PRODUCER, "kafka", topic, "send")
        assert (int(a["messaging.destination.partition.id"]), a["messaging.kafka.offset"]) == (r.partition, r.offset)
        traced = i in (ids[20], ids[22])
        assert (s.trace, s.parent) == ((TRACE, SPAN) if traced else (i.replace("-", ""), None))
        assert header(r, "traceparent") == (GIVEN.encode() if traced else None)
    assert SECRET not in repr(got.taken)


def test_sampled_alike(outbox, box, kafka, collector):
    """Relay and consumer of the same ratio choose the same events, without a word between them."""
    got = collector()
    o, b = outbox(to(got, sample=0.2)), box(partitions=0)
    kind, topic = o.kind()
    o.many(kind, [str(i) for i in range(200)])
    c = b.consumer(topics=[topic], config={"tracing": to(got, sample=0.2)})
    o.start()
    c.start().wait_ready()
    b.wait_count(200)
    assert c.terminate() == 0  # what waits is sent at the end
    o.stop()
    sent, handled = ({s.attributes["messaging.message.id"] for s in got.spans(kind=k)} for k in (PRODUCER, CONSUMER))
    assert sent == handled and 10 < len(sent) < 90


def test_what_a_consumer_says(box, collector):
    """Handled, parked, buried: class and code of why, and not the handler's words; what is kept is the record's own
    traceparent, what handlers see is their span's."""
    got, b = collector(), box(partitions=1)
    b.db.psql(f"""CREATE TABLE app.seen (id uuid, trace text);
        CREATE FUNCTION app.look(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
        BEGIN
            IF m.key <> 'good' AND NOT EXISTS (SELECT FROM app.poison WHERE how = 'cured') THEN
                RAISE EXCEPTION '{SECRET}' USING ERRCODE = CASE m.key WHEN 'park' THEN 'P0001' ELSE '23505' END;
            END IF;
            INSERT INTO app.seen VALUES (m.id, m.headers ->> 'traceparent');
        END $$;""")
    rules = [{"match": "sqlstate:23*", "policy": "dead_letter"}, {"match": "sqlstate:P0001", "policy": "park", "attempts": 0, "backoff": "100ms", "backoff_max": "500ms"}]
    c = b.consumer({"kind": "sql", "function": "app.look"}, config={"tracing": to(got), "errors": rules})
    ids = {}
    for key in ("good", "park", "bury"):
        ids[key] = str(uuid.uuid4())
        b.put(key, json.dumps({"seq": 1, "s": SECRET}), [("id", ids[key]), ("type", "T"), ("traceparent", GIVEN)])
    b.put("good", '{"seq": 2}', [("id", str(uuid.uuid4())), ("type", "T"), ("traceparent", UNSAMPLED)])
    b.flush()
    c.start()
    b.wait_dead(1)
    parked = wait_until(lambda: b.db.query("SELECT headers ->> 'traceparent' FROM inbox.parked"), 60, "a parked message")
    assert parked == [(GIVEN,)]
    assert b.db.query("SELECT headers ->> 'traceparent' FROM inbox.dead_letter") == [(GIVEN,)]
    b.poison("-", "cured")
    wait_until(lambda: b.one("SELECT count(*) FROM app.seen") == 3, 60, "the parked one to be handled")
    assert c.terminate() == 0
    good, bury, tries = got.of(ids["good"]), got.of(ids["bury"]), got.of(ids["park"])
    assert all((s.trace, s.parent, s.kind) == (TRACE, SPAN, CONSUMER) for s in good + bury + tries)
    assert [(s.attributes["postrider.outcome"], s.status) for s in good] == [("handled", {})]
    assert [s.attributes["postrider.outcome"] for s in bury] == ["dead_letter"]
    assert bury[0].attributes["error.type"] == "sqlstate:23505" and bury[0].status == {"code": 2, "message": "sqlstate:23505"}
    assert bury[0].attributes["postrider.failed_attempts"] == 1
    assert len(tries) >= 2 and len({s.id for s in tries}) == len(tries)
    assert [s.attributes["postrider.outcome"] for s in tries] == ["parked"] * (len(tries) - 1) + ["handled"]
    assert tries[0].attributes["error.type"] == "sqlstate:P0001" and tries[-1].status == {}
    seen = dict(b.db.query("SELECT id::text, trace FROM app.seen"))
    assert [seen[ids[k]] for k in ("good", "park")] == [f"00-{TRACE}-{s[-1].id}-01" for s in (good, tries)]
    assert UNSAMPLED in seen.values()
    assert SECRET not in repr(got.taken) and len(got.spans()) == 2 + len(tries)


def test_off_there_is_nothing(outbox):
    o = outbox()
    kind, topic = o.kind()
    o.publish(kind, "1")
    o.start()
    o.read(topic, 1)
    assert "tracing" not in o.relay.get("/metrics")[1]
    tasks = f"/proc/{o.relay.pid}/task"
    names = [open(f"{tasks}/{t}/comm", encoding="ascii").read().strip() for t in os.listdir(tasks)]
    assert "publisher" in names and "tracing" not in names


@pytest.mark.asan
@pytest.mark.tsan
def test_a_busy_collector_is_asked_again(outbox, collector, tmp_path):
    """429 and 503 are no refusals: the same spans come again, later; the secret goes along, and is shown to nobody."""
    got = collector(lambda n: [(429, {"Retry-After": "1"}, b""), (503, {}, b"<html>"), 200][min(n, 2)])
    secret = tmp_path / "collector"
    secret.write_text(f"Bearer {SECRET}")
    secret.chmod(0o600)
    o = outbox(to(got, headers=[f"Authorization: file:{secret}"]))
    kind, _ = o.kind()
    o.many(kind, [str(i) for i in range(50)])
    o.start()
    wait_spans(got, 50)
    assert len(got.spans()) == 50 and got.requests >= 3
    assert {h["Authorization"] for h in got.headers} == {f"Bearer {SECRET}"}
    wait_until(lambda: counted(o.relay) == {"sent": 50, "dropped": 0, "refused": 0}, 60, "the count")
    o.stop()
    assert SECRET not in o.relay.log_text()
    shown = servers.Cli("postrider-relay").run("-c", o.relay.file, "--print-config", check=True).stdout
    assert SECRET not in shown and "tracing" in shown


@pytest.mark.parametrize("answer, outcome", [
    ((400, {}, b"no"), {"refused": 40}), ((302, {"Location": "/v1/traces"}, b""), {"refused": 40}),
    ((200, {}, b"\xff\x00garbage"), {"sent": 40}), ((200, {}, b""), {"sent": 40}),
    ((200, {}, b'{"partialSuccess":{"rejectedSpans":"7","errorMessage":"x"}}'), {"sent": 33, "refused": 7}),
    ((200, {}, b'{"partialSuccess":{"rejectedSpans":"99999999999999999999"}}'), {"refused": 40}),
])
def test_its_last_word(outbox, collector, answer, outcome):
    """Any other answer settles the spans; what cannot be read says nothing against them."""
    got = collector(lambda n: answer)
    o = outbox(to(got))
    kind, topic = o.kind()
    o.many(kind, [str(i) for i in range(40)])
    o.start()
    want = {"sent": 0, "dropped": 0, "refused": 0, **outcome}
    wait_until(lambda: sum(counted(o.relay).values()) == 40, 60, "the count")
    assert counted(o.relay) == want and not got.wrong
    o.stop()


@pytest.mark.parametrize("how", ["away", "silent"])
def test_nobody_waits_for_it(outbox, collector, how):
    """A collector that is not there, or takes a request and never answers: all is published while it is, what does
    not fit the queue is lost and counted, and the end comes within its bound."""
    got = collector()
    got.gate.clear()
    if how == "away":
        got.close()
    o = outbox(to(got, queue=100, timeout="2s"))
    kind, topic = o.kind()
    o.many(kind, [str(i) for i in range(3000)])
    o.start()
    assert len(o.read(topic, 3000)) == 3000
    wait_until(lambda: counted(o.relay)["dropped"] >= 2000, 60, "spans to be dropped")
    assert counted(o.relay)["sent"] == 0
    o.wait_state("ok")
    o.stop()


def test_the_end_sends_what_waits(outbox, collector):
    """SIGTERM right behind the last event: its span is there when the relay has gone."""
    got = collector()
    o = outbox(to(got))
    kind, topic = o.kind()
    o.start()
    for i in range(30):
        o.publish(kind, str(i))
    assert len(o.read(topic, 30)) == 30
    o.stop()
    assert len(got.spans()) == 30
