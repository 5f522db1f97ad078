#!/bin/sh
# Install the servers and the browser that the tests drive: Debian packages when root, else say what is missing.
set -eu
missing=""
for pair in redis-server:redis-server chromium:chromium ip:iproute2 openssl:openssl \
    wine:wine wine:wine64 rpmbuild:rpm rpmlint:rpmlint \
    systemd-analyze:systemd systemd-nspawn:systemd-container logrotate:logrotate mandoc:mandoc nginx:nginx \
    haproxy:haproxy caddy:caddy; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair#*:}"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "The tests need these programs, please install them:$missing" >&2
    exit 1
fi
echo "Installing for the tests:$missing"
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
apt-get update -qq
# A server that the package would start by itself is of no use here: the tests start their own.
printf '#!/bin/sh\nexit 101\n' > /tmp/policy-rc.d.$$
restore=""
if [ ! -e /usr/sbin/policy-rc.d ]; then
    install -m 755 /tmp/policy-rc.d.$$ /usr/sbin/policy-rc.d
    restore=yes
fi
rm -f /tmp/policy-rc.d.$$
status=0
apt-get install -qq -y --no-install-recommends $missing >/dev/null || status=$?
[ -z "$restore" ] || rm -f /usr/sbin/policy-rc.d
exit $status
