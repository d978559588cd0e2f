#!/bin/bash
# PostgreSQL: started, loaded by pgbench, stopped.  It does not run as root.
set -e
data=$(mktemp -d)
as() { if [ "$(id -u)" = 0 ]; then setpriv --reuid postgres --regid postgres --clear-groups "$@"; else "$@"; fi; }
[ "$(id -u)" != 0 ] || chown postgres "$data"
tools=$(dirname "$(readlink -f "$(command -v postgres || ls /usr/lib/postgresql/*/bin/postgres | tail -1)")")
cd "$data"
as "$tools/initdb" -D "$data/db" >/dev/null 2>&1
as "$tools/pg_ctl" -D "$data/db" -w -o "-p 17392 -k $data -c listen_addresses=" -l "$data/log" start >/dev/null
as "$tools/pgbench" -h "$data" -p 17392 -i -s 1 -q postgres >/dev/null 2>&1
as "$tools/pgbench" -h "$data" -p 17392 -c 4 -t 50 postgres >/dev/null 2>&1
as "$tools/pg_ctl" -D "$data/db" -w stop >/dev/null
rm -rf "$data"
