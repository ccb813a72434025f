#!/usr/bin/env bash
# Runs one of the shapes in this folder on this machine: ./run.sh cloud-run | sites | stages
#
# The servers get the files of the shape's folder. Only what loopback needs is changed: the addresses of the other servers
# and the folder of secrets in a copy of each file, and ports, stores and the admin interface by flags.
#
# PROGRAMS is the folder with gitstafette-server, and gitstafette-client if there is one (default: those in the PATH).
# PORT is the port of the shape cloud-run (default: one that is free); all others are chosen by the system.
set -euo pipefail

fail() {
    echo "run.sh: $*" >&2
    exit 1
}

shape=${1:-}
here=$(cd "$(dirname "$0")" && pwd)
case $shape in cloud-run | sites | stages) ;; *) fail "say which shape: cloud-run, sites or stages" ;; esac
for tool in curl openssl; do
    command -v "$tool" > /dev/null || fail "$tool is missing"
done
server=$(command -v "${PROGRAMS:+$PROGRAMS/}gitstafette-server") || fail "set PROGRAMS to the folder of gitstafette-server"
client=$(command -v "${PROGRAMS:+$PROGRAMS/}gitstafette-client") || client=
given_port=${PORT:-}
# Settings of the reader's own servers are not for these.
unset PORT OAUTH_TOKEN STATE_DIRECTORY ${!GITSTAFETTE_@}

work=$(mktemp -d)
processes=
clean_up() {
    for process in $processes; do
        kill "$process" 2> /dev/null || true
    done
    for process in $processes; do
        wait "$process" 2> /dev/null || true
    done
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 1' INT TERM

# A secret for each that the files name, and an operator's for this script.
mkdir "$work/secrets"
for file in admin.token webhook.secret $(grep -oh '"/etc/gitstafette/[^"]*' "$here/$shape"/*.toml | sed 's#.*/##'); do
    [ -e "$work/secrets/$file" ] || openssl rand -hex 32 > "$work/secrets/$file"
done
secret=$(cat "$work/secrets/webhook.secret")

# Waits until a command succeeds: it is run again and again, for a minute at most.
until_it() {
    local deadline=$((SECONDS + 60))
    until "$@"; do
        [ $SECONDS -lt $deadline ] || fail "this did not come true in a minute: $*"
        sleep 0.1
    done
}

# The last address that a server has logged: http, grpc or admin.
address() {
    [ ! -e "$work/$1.log" ] || sed -n "s/.* $2\.address=\([^ ]*\).*/\1/p" "$work/$1.log" | tail -n 1
}

listens() {
    kill -0 "$process" 2> /dev/null || return 0
    [ -n "$(address "$1" http)" ]
}

# Starts the server of NAME.toml with these flags. A name of its own for a second start: NAME-again.
start() {
    local name=$1 file=$here/$shape/${1%-again}.toml
    shift
    sed -e "s#/etc/gitstafette#$work/secrets#g" \
        -e "s#https://listener.example#http://127.0.0.1:${port:-}#" \
        -e "s#https://edge.example#http://$(address edge grpc)#" \
        -e "s#https://staging.example#http://$(address staging grpc)#" \
        -e "s#https://production.example#http://$(address production grpc)#" \
        "$file" > "$work/$name.toml"
    : > "$work/$name.log"
    "$server" --config "$work/$name.toml" --bind 127.0.0.1 --admin-port 0 \
        --admin-token-file "$work/secrets/admin.token" "$@" 2> "$work/$name.log" &
    process=$!
    processes="$processes $process"
    until_it listens "$name"
    kill -0 "$process" 2> /dev/null
}

# Starts a server with a store on disk and ports that the system chooses.
start_on_disk() {
    start "$1" --store "$work/$1" --port 0 --grpc-port 0 --grpc-health-port 0 || fail "$(cat "$work/$1.log")"
    echo "$1 listens: webhooks at $(address "$1" http), gRPC at $(address "$1" grpc)"
}

# Starts the listener as Cloud Run would.
start_listener() {
    export GITSTAFETTE_WEBHOOK_HMAC=$secret GITSTAFETTE_CLIENT_TOKEN
    GITSTAFETTE_CLIENT_TOKEN=$(cat "$work/secrets/listener.token")
    # Windows of two seconds, so that some are over while we look.
    PORT=$port start "$1" --stream-window 2s || return 1
    listener=$process
    unset GITSTAFETTE_WEBHOOK_HMAC GITSTAFETTE_CLIENT_TOKEN
    echo "$1 listens at $(address "$1" http) for everything"
}

# Sends a webhook as GitHub does: send SERVER EVENT ACTION REPOSITORY DELIVERY
send() {
    local id body signature status
    id=$(printf %s "$4" | cksum | cut -d ' ' -f 1)
    body="{\"action\":\"$3\",\"repository\":{\"id\":$id,\"full_name\":\"$4\"}}"
    # The secret is of this run only: that others on this machine can see it in a list of processes does no harm.
    signature=$(printf %s "$body" | openssl dgst -sha256 -hmac "$secret" | sed 's/^.* //')
    status=$(curl --silent --show-error --noproxy '*' --output "$work/answer" --write-out '%{http_code}' \
        --header 'Content-Type: application/json' --header "X-GitHub-Event: $2" --header "X-GitHub-Delivery: $5" \
        --header 'X-GitHub-Hook-ID: 4711' --header "X-Hub-Signature-256: sha256=$signature" \
        --data-binary "$body" "http://$(address "$1" http)/v1/github/")
    [ "$status" = 201 ] || fail "$5 was answered with $status: $(cat "$work/answer")"
    echo "sent to $1: $5, $2${3:+.$3} of $4"
}

# Asks a server's admin interface.
ask() {
    curl --silent --noproxy '*' --header "Authorization: Bearer $(cat "$work/secrets/admin.token")" \
        "http://$(address "$1" admin)$2"
}

# The delivery ids that a server holds, in order.
holds() {
    ask "$1" '/v1/events?order=oldest' | grep -o '"deliveryId":"[^"]*"' | cut -d '"' -f 4 | tr '\n' ' ' || true
}

is_held() {
    [ "$(holds "$1")" = "$2 " ]
}

has_logged() {
    grep -q "$2" "$work/$1.log"
}

# How many events each relay of a server has handed on or drawn, by name.
have_relayed() {
    [ "$(ask "$1" /v1/relays | grep -o '"relayed":[0-9]*' | cut -d : -f 2 | tr '\n' ' ')" = "$2 " ]
}

relays() {
    echo
    echo "The relays of $1:"
    if [ -n "$client" ]; then
        "$client" relays list --server "http://$(address "$1" grpc)" --token-file "$work/secrets/admin.token"
    else
        ask "$1" /v1/relays
        echo
    fi
}

# The lines about one delivery id, hop by hop.
follow() {
    local delivery=$1 name
    shift
    for name in "$@"; do
        echo
        echo "$delivery in the log of $name:"
        grep "delivery.id=$delivery " "$work/$name.log" || echo "(nothing)"
    done
}

cloud_run() {
    local tries=0
    port=$given_port
    until [ -n "$port" ] && start_listener listener; do
        tries=$((tries + 1))
        [ -z "$given_port" ] && [ $tries -lt 20 ] || fail "$(cat "$work/listener.log")"
        port=$((20000 + RANDOM % 10000))
    done
    start_on_disk home
    send listener push '' octo/lighthouse first
    send listener issues opened octo/lighthouse second
    until_it is_held home 'first second'
    until_it has_logged home 'the stream window is over'
    echo "a stream window was over"
    send listener push '' octo/lighthouse third
    until_it is_held home 'first second third'
    kill "$listener"
    wait "$listener" || true
    echo "the listener has stopped, and has forgotten everything"
    start_listener listener-again || fail "$(cat "$work/listener-again.log")"
    send listener-again push '' octo/anchor fourth
    until_it is_held home 'first second third fourth'
    echo
    echo "home holds: $(holds home)"
    relays home
    follow fourth listener-again home
}

sites() {
    start_on_disk edge
    start_on_disk north
    start_on_disk south
    send edge push '' octo/lighthouse first
    send edge push '' harbor/crane second
    send edge pull_request opened octo/lighthouse third
    send edge push '' harbor/pier fourth
    until_it is_held north 'first third'
    until_it is_held south 'second fourth'
    echo
    for name in edge north south; do
        echo "$name holds: $(holds "$name")"
    done
    relays north
    follow third edge north south
}

stages() {
    start_on_disk staging
    start_on_disk production
    start_on_disk edge
    send edge push '' octo/shop first
    send edge release published octo/shop second
    send edge release published octo/lighthouse third
    send edge pull_request opened octo/lighthouse fourth
    until_it is_held staging 'first fourth'
    until_it is_held production 'second'
    # Production first: by name.
    until_it have_relayed edge '1 2'
    echo
    for name in edge staging production; do
        echo "$name holds: $(holds "$name")"
    done
    relays edge
    follow second edge staging production
}

"${shape/-/_}"
echo
echo "$shape: everything arrived where it should"
