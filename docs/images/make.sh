#!/usr/bin/env bash
# Makes the pictures of the docs: what the product shows today. Needs Chromium; WELD names the binary.
set -euo pipefail
cd "$(dirname "$0")/../.."
weld=$(realpath "${WELD:-target/release/weld}")
images=$PWD/docs/images
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r recipes "$work"
cd "$work"

# picture NAME PAGE HEIGHT: the top of a page.
picture() {
  chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size="1100,$3" \
    --screenshot="$images/$1.png" "file://$work/$2" 2>/dev/null
}

# terminal NAME HEIGHT COMMAND...: what a command prints.
terminal() {
  local name=$1 height=$2
  shift 2
  {
    echo '<meta charset="utf-8"><style>body{background:#16181d;color:#d7dae0;margin:24px;font:15px/1.45 monospace}'
    echo 'b{color:#8ab4f8}</style><pre><b>$ weld' "$*" '</b>'
    COLUMNS=110 "$weld" "$@" | sed 's/&/\&amp;/g; s/</\&lt;/g'
  } > "$name.html"
  picture "$name" "$name.html" "$height"
}

terminal plan 480 plan recipes/ties.yml

"$weld" plan recipes/ties.yml --format html > page.html
picture plan-page page.html 1000

# A checkpoint whose config counts one layer too many.
"$weld" merge recipes/ties.yml merged --quiet
sed -i 's/"num_hidden_layers": 4/"num_hidden_layers": 5/' merged/config.json
"$weld" check merged --quiet --format html=report.html || true
picture check report.html 1000

"$weld" diff recipes/family/sort recipes/family/cipher --base recipes/family/base --quiet --format html=report.html || true
picture diff report.html 1500
