# The images of Herald's services, where `cargo xtask images` cannot build them natively (macOS) and for registries:
#   docker build --target producer --tag herald/producer:TAG .
#   docker build --target consumer --tag herald/consumer:TAG .
#   docker build --target gateway --tag herald/gateway:TAG .
#   docker build --target projector --tag herald/projector:TAG .
FROM rust:1.95.0-slim-bookworm AS build
# Their versions do not affect the programs.
# hadolint ignore=DL3008
RUN apt-get update \
  && apt-get install --yes --no-install-recommends make perl \
  && rm -rf /var/lib/apt/lists/*
WORKDIR /herald
COPY . .
# OpenSSL embeds its build date in the library; zlib comes from the crate.
ENV RUSTFLAGS="-C target-feature=+crt-static" SOURCE_DATE_EPOCH=1 LIBZ_SYS_STATIC=1
# `dev` compiles changes in seconds.
ARG PROFILE=release
# With an explicit --target, RUSTFLAGS do not apply to build scripts. A fixed file time makes the layer reproducible.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
  --mount=type=cache,target=/herald/target,sharing=locked \
  target=$(rustc --print host-tuple) \
  && cargo build --profile "$PROFILE" --locked --bins --target "$target" \
    --package producer --package consumer --package gateway --package projector \
  && if [ "$PROFILE" = dev ]; then folder=debug; else folder=$PROFILE; fi \
  && for program in producer consumer gateway projector; do \
    install -D --target-directory=/programs "target/$target/$folder/$program" || exit 1; \
  done \
  && touch --date=@0 /programs/*

# An image contains only the program.
FROM scratch AS producer
LABEL org.opencontainers.image.title="herald-producer" \
  org.opencontainers.image.description="Sends broadcasts to Apache Kafka" \
  org.opencontainers.image.licenses="Apache-2.0" \
  org.opencontainers.image.version="0.1.0"
COPY --from=build /programs/producer /producer
USER 65532:65532
EXPOSE 9090
ENTRYPOINT ["/producer"]

FROM scratch AS consumer
LABEL org.opencontainers.image.title="herald-consumer" \
  org.opencontainers.image.description="Relays an Apache Kafka topic to browsers over SSE, WebSocket and Socket.IO" \
  org.opencontainers.image.licenses="Apache-2.0" \
  org.opencontainers.image.version="0.1.0"
COPY --from=build /programs/consumer /consumer
USER 65532:65532
EXPOSE 5000 9090
ENTRYPOINT ["/consumer"]

FROM scratch AS gateway
LABEL org.opencontainers.image.title="herald-gateway" \
  org.opencontainers.image.description="Publishes session events from WebSockets to Apache Kafka, and answers queries for sessions" \
  org.opencontainers.image.licenses="Apache-2.0" \
  org.opencontainers.image.version="0.1.0"
COPY --from=build /programs/gateway /gateway
USER 65532:65532
EXPOSE 8080 9090
ENTRYPOINT ["/gateway"]

FROM scratch AS projector
LABEL org.opencontainers.image.title="herald-projector" \
  org.opencontainers.image.description="Keeps a document of each session in a database" \
  org.opencontainers.image.licenses="Apache-2.0" \
  org.opencontainers.image.version="0.1.0"
COPY --from=build /programs/projector /projector
USER 65532:65532
EXPOSE 9090
ENTRYPOINT ["/projector"]
