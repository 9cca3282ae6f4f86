# For the adapters, which are run by path: where the programs are, and the few things that each of them does.
# The programs: METADATA_WSGI_BIN, else the checkout's own environment, else PATH.
TOP=$(readlink -f "$PEERS/../..")
if [ -n "$METADATA_WSGI_BIN" ]; then BIN=$METADATA_WSGI_BIN
elif [ -x "$TOP/.venv/bin/quantum-metadata-agent" ]; then BIN=$TOP/.venv/bin
else BIN=$(dirname "$(command -v quantum-metadata-agent)"); fi
D=$BENCH_STATE/metadata_wsgi

# configure SOCKET [LINE...]: $D/metadata_agent.ini with the static directory, made from the inventory
configure() {
    mkdir -p "$D"
    "$BIN/python" "$PEERS/inventory.py" "$BENCH_PORTS" > "$D/inventory.yaml"
    {
        printf '%s\n' '[DEFAULT]' "state_path = $D" "metadata_proxy_socket = $1" \
            "metadata_proxy_shared_secret = $BENCH_SECRET" 'directory = static' \
            "nova_metadata_host = ${BENCH_UPSTREAM%:*}" "nova_metadata_port = ${BENCH_UPSTREAM#*:}"
        if [ -n "$METADATA_WORKERS" ]; then echo "metadata_workers = $METADATA_WORKERS"; fi
        shift
        printf '%s\n' "$@" '[static]' "inventory = $D/inventory.yaml"
    } > "$D/metadata_agent.ini"
}

# begin NAME PROGRAM...: start it, its pid in pids/NAME.pid
begin() {
    name=$1; shift
    "$@" </dev/null >"$D/$name.out" 2>&1 &
    echo $! > "$BENCH_STATE/pids/$name.pid"
}

# until_there PATH: wait for a socket
until_there() {
    i=0
    while [ ! -e "$1" ]; do
        i=$((i+1))
        if [ $i -gt 300 ]; then echo "nothing listens on $1" >&2; tail "$D"/*.out "$D"/*.log >&2; exit 1; fi
        sleep 0.1
    done
}
