# The command alone, without a shell: image/ARCHITECTURE/weld is built before, by .ci/binary.
FROM gcr.io/distroless/static-debian12:nonroot
ARG TARGETARCH
COPY image/${TARGETARCH}/weld /usr/local/bin/weld
WORKDIR /models
ENTRYPOINT ["/usr/local/bin/weld"]
