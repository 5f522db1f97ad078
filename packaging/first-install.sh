#!/bin/sh
# Make the configuration of a first installation: a random secret and a random API key where none is set. Comments and
# everything else stay as they are. Usage: first-install CONFIG [EXAMPLE], the example for where there is no file yet.
set -eu
umask 027
config=$1
random() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }

if [ ! -e "$config" ]; then
    mkdir -p "$(dirname "$config")"
    cp "$2" "$config"
fi
# Through standard input, so that no process list shows them.
sed -i -f /dev/stdin "$config" <<END
s/^secret = ""\$/secret = "$(random)"/
s/^keys = \[\]\$/keys = ["$(random)"]/
END
chown root:sse-broker "$config"
chmod 640 "$config"
