#!/bin/bash
# A redis server that saves in the background, which forks.
set -e
data=$(mktemp -d)
redis-server --port 17391 --bind 127.0.0.1 --save "" --dir "$data" >/dev/null 2>&1 &
server=$!
for _ in {1..50}; do redis-cli -p 17391 ping >/dev/null 2>&1 && break; sleep 0.1; done
redis-cli -p 17391 debug populate 20000 key 100 >/dev/null
redis-cli -p 17391 bgsave >/dev/null
for _ in {1..50}; do redis-cli -p 17391 info persistence | grep -q "rdb_bgsave_in_progress:0" && break; sleep 0.1; done
redis-cli -p 17391 shutdown nosave
wait $server
rm -rf "$data"
