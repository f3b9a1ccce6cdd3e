"""tests/e2e/test_asyncapi.py -- `postrider asyncapi`: a document that AsyncAPI's own schema takes, from topics and from the catalogue.

The schema is schemas/3.0.0-without-$id.json of @asyncapi/specs 6.11.1 (Apache-2.0), packed.
"""
import gzip
import json
import os
import uuid

import jsonschema
import pytest
import servers
import yaml

from sink_made import SCHEMA

SPECS = os.path.join(servers.ROOT, "tests/support/asyncapi-3.0.0.json.gz")


class Plain(jsonschema.RefResolver):
    """All references are local; a property that is called $id (of the schema of schemas) is taken for an id otherwise."""

    def _find_in_subschemas(self, url):
        return None


@pytest.fixture(scope="module")
def valid():
    with gzip.open(SPECS) as f:
        schema = json.load(f)
    validator = jsonschema.Draft7Validator(schema, resolver=Plain.from_schema(schema))

    def check(document):
        errors = [f"{'/'.join(map(str, e.absolute_path))}: {e.message[:200]}" for e in validator.iter_errors(document)]
        assert not errors, errors[:5]
        # What the schema cannot say: every reference leads somewhere.
        def walk(v):
            if isinstance(v, dict):
                if "$ref" in v:
                    at = document
                    for step in v["$ref"].split("/")[1:]:
                        at = at[step]
                for inner in v.values():
                    walk(inner)
            elif isinstance(v, list):
                for inner in v:
                    walk(inner)
        walk(document)
        return document
    return check


def produce(kafka, topic):
    from confluent_kafka import Producer
    p = Producer({"bootstrap.servers": kafka.bootstrap})
    for n in range(30):
        payload = {"id": n, "user": {"email": f"u{n}@example.com", "born": "1990-01-31"}, "items": [{"sku": "A-1", "price": 1.5}],
                   "by": {str(uuid.uuid4()): {"n": 1}}, "total": 12.10 if n % 2 else 3, "note": None if n % 3 else "yes", "a b": True}
        if n % 5:
            payload["sometimes"] = "EUR"
        p.produce(topic, json.dumps(payload), f"k{n}", n % 2, headers=[("id", str(uuid.uuid4())), ("type", "Order placed!"), ("tenant", "x")])
    p.produce(topic, b"\xff", b"\xff\x00", 0, headers=[("type", "Raw")])
    p.produce(topic, None, b"k", 0)
    assert p.flush(30) == 0


@pytest.fixture
def filled(kafka, topic):
    kafka.create_topic(topic, 2)
    produce(kafka, topic)
    return topic


def sampled(cli, kafka, topic, *args):
    return cli("asyncapi", "-t", topic, "--brokers", kafka.bootstrap, "--sample", "1000", *args, check=True).stdout


def without_examples(v):
    """Which record comes first decides them: partitions are read side by side."""
    if isinstance(v, dict):
        return {k: without_examples(inner) for k, inner in v.items() if k != "examples"}
    return [without_examples(inner) for inner in v] if isinstance(v, list) else v


def test_of_samples_by_a_pattern(filled, kafka, cli, tmp_path):
    """Topics of -c may be a pattern, which is no topic's name."""
    config = tmp_path / "sink.cfg"
    config.write_text(f'group = "g";\ndatabase: {{ conninfo = "dbname=none"; }};\nkafka: {{ brokers = "{kafka.bootstrap}"; '
                      f'topics = [ "^{filled}$" ]; }};\nhandler: {{ kind = "sink"; files: {{ directory = "{tmp_path}"; }}; }};\n')
    doc = json.loads(cli("asyncapi", "-c", config, "--sample", "1000", "--json", check=True).stdout)
    assert [c["address"] for c in doc["channels"].values()] == [filled]


def test_of_samples(filled, kafka, cli, valid):
    text = sampled(cli, kafka, filled, "--title", "Orders: all", "--api-version", "2.0.0")
    doc = valid(yaml.safe_load(text))
    again = json.loads(sampled(cli, kafka, filled, "--title", "Orders: all", "--api-version", "2.0.0", "--json"))
    assert without_examples(doc) == without_examples(again)
    assert doc["asyncapi"] == "3.0.0" and doc["info"]["title"] == "Orders: all" and doc["info"]["version"] == "2.0.0"
    (channel,) = doc["channels"].values()
    assert channel["address"] == filled and channel["bindings"]["kafka"]["partitions"] == 2
    assert set(channel["messages"]) == {"Order_placed_", "Raw", "untyped"}
    message = doc["components"]["messages"]["Order_placed_"]
    assert message["name"] == "Order placed!" and message["bindings"]["kafka"]["key"]["type"] == "string"
    assert {"id", "type", "tenant"} <= set(message["headers"]["properties"])
    schema = message["payload"]
    fields = schema["properties"]
    assert set(schema["required"]) == {"id", "user", "items", "by", "total", "note", "a b"}
    assert fields["id"]["type"] == "integer" and fields["total"]["type"] == "number" and fields["a b"]["type"] == "boolean"
    assert fields["note"]["type"] == ["null", "string"] and fields["items"]["items"]["properties"]["sku"]["type"] == "string"
    assert fields["by"]["additionalProperties"]["properties"]["n"]["type"] == "integer"
    assert fields["user"]["properties"]["email"]["x-pii"] == ["email", "key"]
    (example,) = message["examples"]
    assert example["payload"]["user"] == {"email": example["payload"]["user"]["email"], "born": "9999-99-99"}
    assert "example" not in text.replace("examples:", "") and "A-1" not in text
    jsonschema.Draft7Validator(schema).validate({"id": 1, "user": {"email": "x", "born": "y"}, "items": [], "by": {}, "total": 1.5,
                                                 "note": None, "a b": False})


def test_examples(filled, kafka, cli, valid):
    plain = valid(json.loads(sampled(cli, kafka, filled, "--examples", "plain", "--json")))
    fields = plain["components"]["messages"]["Order_placed_"]["payload"]["properties"]
    assert fields["sometimes"]["examples"] == ["EUR"]
    assert "@" in fields["user"]["properties"]["email"]["examples"][0]
    assert "example" not in fields["user"]["properties"]["email"]["examples"][0], "of a person: masked all the same"
    none = valid(json.loads(sampled(cli, kafka, filled, "--examples", "none", "--json")))
    assert '"examples"' not in json.dumps(none)


def test_of_the_catalogue(db, cli, valid):
    done = cli("asyncapi", "--conninfo", db.conninfo)
    assert done.returncode == 4 and "--sample" in done.stderr
    db.psql(open(SCHEMA, encoding="utf-8").read())
    assert valid(json.loads(cli("asyncapi", "--conninfo", db.conninfo, "--json", check=True).stdout))["channels"] == {}
    for path, kinds, seen, sample, pii in (
            ("payload", ["object"], 10, None, None), ("payload.id", ["integer"], 10, "1", None), ("payload.x[]", ["string", "null"], 5, '"a"', None),
            ("payload.x", ["array"], 9, None, None), ('payload["a.b"]', ["string"], 10, '"secret"', "key"), ("payload.m.*", ["integer"], 3, "2", None),
            ("payload.m", ["object"], 3, None, None)):
        db.query("INSERT INTO sink.catalogue VALUES ('orders', 'Placed', %s, %s, %s, now(), now(), %s, %s)", (path, kinds, seen, sample, pii))
    db.query("INSERT INTO sink.catalogue SELECT 'others', type, path, kinds, seen, first_seen, last_seen, sample, pii FROM sink.catalogue")
    doc = valid(yaml.safe_load(cli("asyncapi", "--conninfo", db.conninfo, check=True).stdout))
    assert set(doc["channels"]) == {"orders", "others"} and set(doc["components"]["messages"]) == {"Placed", "Placed_2"}
    schema = doc["components"]["messages"]["Placed"]["payload"]
    assert schema["required"] == ["a.b", "id"] or set(schema["required"]) == {"a.b", "id"}
    assert schema["properties"]["x"]["items"]["type"] == ["null", "string"]
    assert schema["properties"]["m"]["additionalProperties"]["type"] == "integer"
    only = json.loads(cli("asyncapi", "--conninfo", db.conninfo, "-t", "others", "--json", check=True).stdout)
    assert set(only["channels"]) == {"others"}


def test_strange_names(kafka, topic, cli, valid):
    """Names, and texts, that YAML or the specification would take for something else."""
    from confluent_kafka import Producer
    kafka.create_topic(topic, 1)
    p = Producer({"bootstrap.servers": kafka.bootstrap})
    payload = {"yes": "no", "null": "~", "1": "2", "": "x", "a: b": "- c", "#": "\u2028 \"q\" \\", "é": "☃", "true": [[], {}], "n": [[1]]}
    for kind in ("on", "a/b", "A/B", "~", "ü"):
        p.produce(topic, json.dumps(payload), "k", headers=[("id", str(uuid.uuid4())), ("type", kind)])
    assert p.flush(30) == 0
    doc = valid(yaml.safe_load(sampled(cli, kafka, topic, "--examples", "plain")))
    assert doc == json.loads(sampled(cli, kafka, topic, "--examples", "plain", "--json"))
    messages = doc["components"]["messages"]
    assert sorted(m["name"] for m in messages.values()) == sorted(["on", "a/b", "A/B", "~", "ü"])
    fields = messages["on"]["payload"]["properties"]
    assert set(fields) >= {"yes", "null", "", "a: b", "#", "é", "true", "n"} and fields["#"]["examples"] == ["\u2028 \"q\" \\"]


def test_refuses(cli, kafka):
    assert cli("asyncapi", "--sample", "10", "--brokers", kafka.bootstrap).returncode == 2
    assert cli("asyncapi", "-t", "no-such-topic", "--sample", "10", "--brokers", kafka.bootstrap).returncode == 4
