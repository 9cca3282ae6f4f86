# Where the programs are: METADATA_WSGI_BIN, else the checkout's own environment, else PATH.
TOP=$(readlink -f "$HERE/../../..")
if [ -n "$METADATA_WSGI_BIN" ]; then BIN=$METADATA_WSGI_BIN
elif [ -x "$TOP/.venv/bin/quantum-metadata-agent" ]; then BIN=$TOP/.venv/bin
else BIN=$(dirname "$(command -v quantum-metadata-agent)"); fi
