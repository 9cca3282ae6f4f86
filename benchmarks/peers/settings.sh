# Functions of the adapters, and where the programs are.
# Programs: METADATA_WSGI_BIN, else .venv of the checkout, else PATH.
TOP=$(readlink -f "$PEERS/../..")
if [ -n "$METADATA_WSGI_BIN" ]; then BIN=$METADATA_WSGI_BIN
elif [ -x "$TOP/.venv/bin/quantum-metadata-agent" ]; then BIN=$TOP/.venv/bin
else BIN=$(dirname "$(command -v quantum-metadata-agent)"); fi
D=$BENCH_STATE/metadata_wsgi

# configure SOCKET MODE: write $D/metadata_agent.ini with a static inventory. If PASTE_CACHED is set, also the shipped
# paste file with both caches in its pipelines.
configure() {
    mkdir -p "$D"
    echo "$2" > "$D/mode"
    "$BIN/python" "$PEERS/inventory.py" "$BENCH_PORTS" > "$D/inventory.yaml"
    {
        printf '%s\n' '[DEFAULT]' "state_path = $D" "metadata_proxy_socket = $1" \
            "metadata_proxy_shared_secret = $BENCH_SECRET" 'directory = static' 'metadata_peer_users = nobody' \
            "nova_metadata_host = ${BENCH_UPSTREAM%:*}" "nova_metadata_port = ${BENCH_UPSTREAM#*:}"
        if [ "$2" = one_hop ]; then echo 'metadata_one_hop = true'; fi
        if [ -n "$METADATA_WORKERS" ]; then echo "metadata_workers = $METADATA_WORKERS"; fi
        if [ -n "$PASTE_CACHED" ]; then echo "api_paste_config = $D/api-paste.ini"; fi
        printf '%s\n' '[static]' "inventory = $D/inventory.yaml"
    } > "$D/metadata_agent.ini"
    if [ -n "$PASTE_CACHED" ]; then
        sed '/^pipeline = /s/ instance / lookup_cache instance response_cache /' "$TOP/etc/api-paste.ini" > "$D/api-paste.ini"
    fi
}

# begin NAME SOCKET PROGRAM...: start PROGRAM, write its pid to pids/NAME.pid, wait until SOCKET exists
begin() {
    name=$1 socket=$2; shift 2
    "$@" </dev/null >"$D/$name.out" 2>&1 &
    echo $! > "$BENCH_STATE/pids/$name.pid"
    i=0
    while [ ! -S "$socket" ]; do
        i=$((i+1))
        if [ $i -gt 300 ]; then echo "$name does not listen on $socket" >&2; tail "$D"/*.out "$D"/*.log >&2; exit 1; fi
        sleep 0.1
    done
}
