"""tests/support/tokens.py -- an issuer of tokens in this process: keys, their published set over HTTP, and tokens of any
content, good and forged. Stands for the user service and the queue where a test needs only their tokens.
"""
import base64
import contextlib
import http.server
import json
import threading
import time
import uuid

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

USER = ("postrider-user", "postrider")
QUEUE = ("postrider-queue", "postrider-queue")


def b64(value):
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Issuer:
    """with Issuer(*QUEUE) as q: q.url is its set, q.token(sub, jti=..., concert_id=...) a token."""

    def __init__(self, issuer, audience):
        self.issuer, self.audience = issuer, audience
        self.key, self.kid = Ed25519PrivateKey.generate(), "k-" + uuid.uuid4().hex[:8]
        self.silence, self.given_up = False, threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                if outer.silence:
                    self.connection.recv(1)
                    outer.given_up.set()
                    return
                body = json.dumps({"keys": [outer.jwk()]}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/.well-known/jwks.json"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @contextlib.contextmanager
    def silent(self):
        """Whoever asks for the set meanwhile waits until he gives up; that somebody has is given_up."""
        self.given_up.clear()
        self.silence = True
        try:
            yield
        finally:
            self.silence = False

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def jwk(self):
        public = self.key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        return {"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": self.kid, "x": b64(public)}

    def token(self, sub, life=3600, key=None, header=None, **claims):
        """key: another one than it should be; header, claims: over what is usual."""
        now = int(time.time())
        head = {"alg": "EdDSA", "typ": "JWT", "kid": self.kid, **(header or {})}
        body = {"iss": self.issuer, "aud": self.audience, "sub": str(sub), "iat": now, "nbf": now, "exp": now + life,
                "jti": str(uuid.uuid4()), **claims}
        text = f"{b64(head)}.{b64(body)}"
        return f"{text}.{b64((key or self.key).sign(text.encode()))}"

    def forged(self, sub, **claims):
        """{what is wrong with it: token}"""
        good = self.token(sub, **claims)
        head, body, sig = good.split(".")
        return {"nothing": "", "no token": "x", "none": f"{b64({'alg': 'none', 'typ': 'JWT'})}.{body}.",
                "another key": self.token(sub, key=Ed25519PrivateKey.generate(), **claims),
                "expired": self.token(sub, **{**claims, "life": -60}),
                "another issuer": self.token(sub, iss="somebody", **claims),
                "another audience": self.token(sub, aud="somebody", **claims),
                "cut": f"{head}.{body}.{sig[:-4]}", "changed": f"{head}.{b64({'sub': str(sub)})}.{sig}"}
