#!/usr/bin/env bash
# ray 2.60.0, run on 2026-11-27.
#
# `ray get-auth-token --generate` makes the token of a cluster. One sets RAY_AUTH_TOKEN_PATH to where the token shall be,
# then makes it. The command fails: importing Ray opens the file that the variable names, and the file is not there yet. It
# fails with RAY_AUTH_MODE=disabled too. The same command without the variable writes ~/.ray/auth_token.
#
# It matters to whoever scripts a cluster: the order "export the path, generate, start" never works on a new machine.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ray==2.60.0
mkdir "$folder/home"
export HOME="$folder/home"
ray="$folder/venv/bin/ray"
if RAY_AUTH_TOKEN_PATH="$folder/home/token" "$ray" get-auth-token --generate >"$folder/named.txt" 2>&1; then named=0; else named=$?; fi
tail -n 1 "$folder/named.txt" | cut -c 1-140
if "$ray" get-auth-token --generate >/dev/null 2>&1; then default=0; else default=$?; fi
echo "exit code with the path named: $named; without: $default; token written: $(ls "$HOME/.ray")"
[ "$named" != 0 ] && [ "$default" = 0 ] && [ -s "$HOME/.ray/auth_token" ]
