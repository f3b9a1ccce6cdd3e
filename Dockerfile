# Dockerfile -- all programs in one image, none of them the default: docker run ... postrider-relay -c /etc/postrider/relay.cfg
# Builds on Debian 12, whose librdkafka, libpq and libconfig are the ones that are tested.
FROM debian:12-slim AS build
# The lines of etc/packages.txt from "# build" to the first empty one.
COPY etc/packages.txt /src/etc/packages.txt
RUN apt-get update && \
    sed -n '/^# build/,/^$/{s/#.*//;p;}' /src/etc/packages.txt | xargs apt-get install -y --no-install-recommends
COPY . /src
WORKDIR /src
RUN make -j"$(nproc)" && make install DESTDIR=/out PREFIX=/usr

FROM debian:12-slim
RUN apt-get update && \
    apt-get install -y --no-install-recommends ca-certificates libcjson1 libconfig9 libcurl4 libhiredis0.14 libjemalloc2 \
        libgnutls30 libmicrohttpd12 libpq5 librdkafka1 libsodium23 libssl3 libxxhash0 libzstd1 zlib1g && \
    rm -rf /var/lib/apt/lists/* && \
    useradd --system --uid 64000 --user-group --home-dir /nonexistent --shell /usr/sbin/nologin postrider
COPY --from=build /out/usr/bin /usr/bin
COPY --from=build /out/usr/share/postrider /usr/share/postrider
USER 64000:64000
# Of a relay; of a consumer: its own file. No shell is needed for it.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=6 \
    CMD ["postrider", "status", "-c", "/etc/postrider/relay.cfg"]
STOPSIGNAL SIGTERM
CMD ["postrider", "--help"]
