"""tests/support/service.py -- drives the example services over real HTTP: requests, tokens, and answers checked
against the service's own openapi.json.

Refuses answers that no document of the service allows: every answer that goes through Api.call is checked, its
status, media type and members.
"""
import http.client
import json
import re
import urllib.parse

import jsonschema
import servers


class Service(servers.Daemon):
    """One of our services. config: merged over its defaults."""

    def __init__(self, name, conninfo, config=None, override=(), env=None, variant=None, port=None):
        self.program = f"postrider-{name}"
        super().__init__(f"service {name}", {"database": {"conninfo": conninfo}}, config, override, env, variant, (), port)


class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.text = status, headers, body.decode("utf-8", "replace")

    @property
    def json(self):
        return json.loads(self.text)

    @property
    def problem(self):
        """The slug of the problem's type."""
        assert self.headers.get("Content-Type") == "application/problem+json", self.text
        assert self.json["status"] == self.status
        return self.json["type"].removeprefix("/problems/")

    @property
    def members(self):
        return [e["member"] for e in self.json.get("errors", [])]

    def __repr__(self):
        return f"<{self.status} {self.text[:300]}>"


def nullable(schema):
    """OpenAPI 3.0's own word, as JSON Schema says it."""
    if isinstance(schema, list):
        return [nullable(s) for s in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {k: nullable(v) for k, v in schema.items()}
    return {"anyOf": [plain, {"type": "null"}]} if plain.pop("nullable", None) is True else plain


class Api:
    """call("POST", "/users", {...}) of one service; body: an object, or bytes as they are."""

    def __init__(self, port):
        self.port = port
        self.openapi = None

    def raw(self, method, path, body=None, headers=None, timeout=30):
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            c.request(method, path, body=body, headers=headers or {})
            r = c.getresponse()
            return Answer(r.status, dict(r.getheaders()), r.read())
        finally:
            c.close()

    def call(self, method, path, body=None, token=None, key=None, headers=None, check=True, timeout=30):
        h = {"Content-Type": "application/json"} if body is not None else {}
        if token:
            h["Authorization"] = f"Bearer {token}"
        if key:
            h["Idempotency-Key"] = key
        h.update(headers or {})
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        answer = self.raw(method, path, data, h, timeout)
        if check:
            self.check(method, path, answer)
        return answer

    def get(self, path, **kw):
        return self.call("GET", path, **kw)

    def post(self, path, body, **kw):
        return self.call("POST", path, body, **kw)

    # ---- against openapi.json

    def document(self):
        if self.openapi is None:
            self.openapi = self.raw("GET", "/openapi.json").json
        return self.openapi

    def operation(self, method, path):
        path = urllib.parse.urlsplit(path).path
        fits = [(p, item) for p, item in self.document()["paths"].items()
                if re.fullmatch(re.sub(r"\\\{[^/]*\\\}", "[^/]+", re.escape(p)), path) and method.lower() in item]
        assert fits, f"{method} {path} is not in openapi.json"
        return min(fits, key=lambda f: f[0].count("{"))[1][method.lower()]

    def check(self, method, path, answer):
        responses = self.operation(method, path)["responses"]
        said = responses.get(str(answer.status)) or responses.get(f"{answer.status // 100}XX")
        assert said, f"{method} {path}: {answer} is not in openapi.json"
        media = answer.headers.get("Content-Type")
        assert media in said["content"], f"{method} {path}: {media} is not in openapi.json"
        schema = nullable({**said["content"][media]["schema"], "components": self.document()["components"]})
        jsonschema.Draft4Validator(schema, format_checker=jsonschema.FormatChecker()).validate(answer.json)
        for name in said.get("headers", {}):
            assert name in answer.headers, f"{method} {path}: no {name}"
