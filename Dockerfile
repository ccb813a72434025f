# syntax=docker/dockerfile:1

FROM rust:1-slim-bookworm AS build
ARG BINARY=gitstafette-server
WORKDIR /src
COPY . .
RUN cargo build --release --locked --package "$BINARY" --bin "$BINARY" \
    && install -D "target/release/$BINARY" /out/gitstafette \
    && mkdir /out/state

FROM debian:bookworm-slim
RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/*
COPY --from=build /out/gitstafette /usr/local/bin/gitstafette
COPY --from=build --chown=65532:65532 /out/state /var/lib/gitstafette
ENV STATE_DIRECTORY=/var/lib/gitstafette
USER 65532:65532
VOLUME /var/lib/gitstafette
EXPOSE 1323 50051 50052
ENTRYPOINT ["/usr/local/bin/gitstafette"]
