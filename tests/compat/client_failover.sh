#!/usr/bin/env bash
# redis-cli as scripts use it, a process for each write, while leaders come and go: `client_failover.sh KIND KEY MASTER HOST:PORT...`.
#
# KIND is `cluster` (redis-cli follows redirections; when a node does not answer, the next one is asked) or `sentinel` (before each
# connection a Sentinel is asked where the master is, as the guidelines for clients of Sentinel want it). It marks growing numbers in the
# string KEY, one after the other, and prints `ok NUMBER` or `error KIND` for each. A number that failed is not tried again. It goes on
# until it is ended.
set -u

kind=$1 key=$2 master=$3
shift 3
addrs=("$@")
asked=0
node=

# redis-cli waits for a reply for ever.
cli() { # SECONDS HOST:PORT WORD...
    timeout "$1" redis-cli -e -h "${2%:*}" -p "${2##*:}" "${@:3}" 2>&1
}

find_node() {
    if [[ $kind == cluster ]]; then
        node=${addrs[asked++ % ${#addrs[@]}]}
        return
    fi
    local sentinel found
    for sentinel in "${addrs[@]}"; do
        found=$(cli 1 "$sentinel" SENTINEL GET-MASTER-ADDR-BY-NAME "$master")
        if [[ $found =~ ^([0-9.]+)$'\n'([0-9]+)$ ]]; then
            node=${BASH_REMATCH[1]}:${BASH_REMATCH[2]}
            return
        fi
    done
    node=
}

for ((number = 1; ; number++)); do
    [[ $node && $kind == cluster ]] || find_node
    if [[ $node ]]; then
        said=$(cli 2 "$node" -c SETRANGE "$key" "$number" x)
        status=$?
    else
        said="Could not connect" status=1
    fi
    case $status:$said in
    0:[1-9]*) echo "ok $number" ;;
    124:*) echo "error timeout" ;;
    *"Could not connect"*) echo "error no connection" ;;
    *"Server closed"* | *"reset by peer"*) echo "error closed" ;;
    *) echo "error ${said%%[[:space:]]*}" ;;
    esac
    [[ $status:$said == 0:[1-9]* ]] || node=
    sleep 0.005
done
