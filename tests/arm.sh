#!/bin/sh
# Merges each recipe with two builds of weld, this machine's and one for 64-bit ARM, and compares every byte
# of the weights: the kernels for NEON give what those for AVX2 and AVX-512 give. moe.yml is left out: the
# states of its prompts depend on the processor.
#
# The ARM build, on Debian with libc6-dev-arm64-cross, gcc-aarch64-linux-gnu, qemu-user and a Rust that has
# the standard library for the target (rustup target add, or libstd-rust-dev:arm64 of rustc's version):
#   export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc
#   export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
#   cargo build --locked --release --target aarch64-unknown-linux-gnu
set -eu
[ $# -eq 2 ] || { echo "usage: $0 WELD WELD_OF_ARM; RUNNER runs the second, by default under emulation" >&2; exit 2; }
runner="${RUNNER-qemu-aarch64 -cpu max -L /usr/aarch64-linux-gnu}"
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
differ=0
merged=0
for recipe in "$(dirname "$0")"/../recipes/*.yml; do
    [ "$(basename "$recipe")" = moe.yml ] && continue
    rm -rf "$out/here" "$out/arm"
    "$1" merge "$recipe" "$out/here" --quiet
    # Words of the command, not one.
    # shellcheck disable=SC2086
    $runner "$2" merge "$recipe" "$out/arm" --quiet
    merged=$((merged + 1))
    cmp "$out/here/model.safetensors" "$out/arm/model.safetensors" || differ=$((differ + 1))
done
echo "$merged recipes, $differ with other bytes on ARM"
[ "$merged" -gt 0 ] && [ "$differ" -eq 0 ]
