#!/bin/sh
# Starts nginx with the given options, and takes query strings out of its error log.
#
# EARMARK_TRUSTED_PROXIES: addresses or networks of the proxies in front of this one, separated by commas. Of their
# connections the client is the one that X-Forwarded-For names; of all others, the sender.
set -eu

for network in $(echo "${EARMARK_TRUSTED_PROXIES:-}" | tr ',' ' '); do
    echo "set_real_ip_from $network;"
done > /tmp/trusted_proxies.conf
nginx -t -q "$@" # shows what is wrong with the configuration before nginx's output leads through the pipe

# A query string may be a grant: `?token=`, `X-Amz-Signature`. nginx repeats request lines in its error log as they came,
# at every level. The shell reads them, since busybox has no unbuffered sed.
without_queries() {
    while IFS= read -r line; do
        kept=
        while [ "$line" != "${line%%\?*}" ]; do
            kept="$kept${line%%\?*}?..."
            line=${line#*\?}
            line=${line#"${line%% *}"}
        done
        printf '%s\n' "$kept$line"
    done
}

rm -f /tmp/errors
mkfifo /tmp/errors
without_queries < /tmp/errors >&2 &
exec nginx "$@" 2> /tmp/errors
