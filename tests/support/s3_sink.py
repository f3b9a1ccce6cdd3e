"""tests/support/s3_sink.py -- a sink into an object store: its bucket, its members, and what is in the bucket compared
with the topic record by record, as tests/support/sink.py does it with files."""
import os

import s3
from sink import Sink, wrong, wrong_with_manifests
from wait import wait_until


class S3Sink(Sink):
    """endpoint: where members ask; the bucket is one of store's."""

    def __init__(self, inbox, store, partitions=3, endpoint=None, **options):
        super().__init__(inbox, partitions)
        self.store = store
        self.bucket = store.bucket(inbox.name)
        self.options = {"endpoint": endpoint or store.endpoint, "bucket": self.bucket, "access_key": s3.ACCESS,
                        "secret_key": s3.SECRET, "max_age": "300ms", "timeout": "5s", **options}
        for name in ("access_key", "secret_key"):
            self.options[name] = self._secret(name, self.options[name])

    def _secret(self, name, value):
        """A secret in the configuration itself is refused."""
        path = os.path.join(self.directory, "." + name)
        with open(path, "w", encoding="ascii") as f:
            f.write(value + "\n")
        os.chmod(path, 0o600)
        return "file:" + path

    def handler(self, **options):
        return {"kind": "sink", "s3": {**self.options, **options}}

    def fetch(self):
        """What everybody sees in the bucket, as files below .directory."""
        prefix = self.options.get("prefix", "")
        for key, data in self.store.objects(self.bucket).items():
            assert key.startswith(prefix), f"{key} is beside {prefix}"
            path = os.path.join(self.directory, key[len(prefix):])
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as f:
                f.write(data)

    def check(self, timeout=60, topics=None, without=(), manifest=False):
        """All is published, each record once, as it is; with manifest: those tell the truth, too."""
        self.published(timeout)
        self.fetch()
        found = wrong(self.directory, self.i.kafka, topics or [self.i.topic], without)
        assert not found, "; ".join(found[:5]) + "\n" + self.standing() + "\n" + self.i.logs()

        def well():
            self.fetch()
            found[:] = wrong_with_manifests(self.directory)
            return not found
        if manifest:
            wait_until(well, 40, "the manifests", ignore=(OSError, ValueError))

    def uploads(self):
        """(key, id) of uploads under way, as the store tells whoever may ask."""
        return self.store.uploads(self.bucket)
