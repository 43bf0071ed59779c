#!/usr/bin/env bash
# The page tests look at pages in a real browser: install Chromium where it is missing, or say what to do.
set -uo pipefail
for name in chromium chromium-browser google-chrome; do
  command -v "$name" >/dev/null 2>&1 && exit 0
done
stop() { echo "dino-tower: the page tests need Chromium and $1; install it so that \`chromium\` is on the PATH, then run make again" >&2; exit 1; }
command -v apt-get >/dev/null 2>&1 || stop "this system has no apt-get to install it with"
sudo=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null 2>&1 || stop "installing it needs root or sudo"
  sudo=(sudo)
fi
echo "dino-tower: installing chromium with apt-get (the page tests use it)"
"${sudo[@]}" apt-get update -qq || stop "apt-get update failed"
"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null \
  || stop "apt-get install chromium failed"
