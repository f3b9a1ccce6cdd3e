"""tests/support/demo_mock.py -- librdkafka's mock broker as a server of the demonstration, where Kafka's jars
cannot be had. Run as a script it is that process. Keeps its records in memory: it is frozen, not stopped.
"""
import ctypes
import os
import signal
import sys

import servers


def serve(topics):
    """Runs librdkafka's mock cluster in this process for ever; prints its address."""
    k = ctypes.CDLL("librdkafka.so.1")
    for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_mock_cluster_new"):
        getattr(k, name).restype = ctypes.c_void_p
    k.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
    why = ctypes.create_string_buffer(512)
    conf = ctypes.c_void_p(k.rd_kafka_conf_new())
    k.rd_kafka_conf_set(conf, b"log_level", b"0", why, 512)
    rk = ctypes.c_void_p(k.rd_kafka_new(0, conf, why, 512))
    cluster = ctypes.c_void_p(k.rd_kafka_mock_cluster_new(rk, 1))
    for spec in topics:
        name, n = spec.rsplit(":", 1)
        if k.rd_kafka_mock_topic_create(cluster, name.encode(), int(n), 1):
            sys.exit(f"mock broker: cannot create {name}")
    print(k.rd_kafka_mock_cluster_bootstraps(cluster).decode(), flush=True)
    while True:
        signal.pause()


class MockKafka(servers.Server):
    """topics: {name: partitions}."""
    name = "mock broker"
    mock = True

    def __init__(self, topics):
        self.topics = topics
        self.log = os.path.join(servers.new_dir("mock"), "mock.log")

    def start(self):
        self.proc = servers.spawn([sys.executable, "-B", os.path.abspath(__file__),
                                   *(f"{t}:{n}" for t, n in self.topics.items())], log=self.log)
        self._remember()

        def address():
            if not self.running():
                raise self._died()
            with open(self.log, encoding="utf-8") as f:
                return f.readline().strip()
        self.bootstrap = servers.wait_until(address, 20, "the mock broker's address").split(",")[0]
        self.port = int(self.bootstrap.rpartition(":")[2])
        return self


if __name__ == "__main__":
    serve(sys.argv[1:])
