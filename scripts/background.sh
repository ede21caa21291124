#!/bin/sh
# Runs a command that goes on after its shell has ended, on this machine or, over ssh, on another one. See --help.
set -eu

usage() {
    cat <<'END'
usage: scripts/background.sh start NAME COMMAND...
       scripts/background.sh status NAME
       scripts/background.sh logs NAME [--follow]
       scripts/background.sh stop NAME

Runs COMMAND in the current folder, detached. Its output is added to runs/jobs/NAME.log. Only one command of a NAME runs
at a time. status says whether it runs, or its exit code. stop sends SIGTERM; training then saves its state and ends.
END
}

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

# Prints the process id if the command runs. The id alone is not enough: another process may have it by now.
running() {
    pid=$(cat "$files.pid" 2>/dev/null) && [ -n "$pid" ] || return 1
    case $(ps -o args= -p "$pid" 2>/dev/null) in *"background.sh keep $name "*) printf '%s' "$pid" ;; *) return 1 ;; esac
}

start() {
    [ $# -gt 0 ] || fail 'name a command: see --help'
    if pid=$(running); then fail "$name runs already (process $pid): scripts/background.sh stop $name"; fi
    mkdir -p runs/jobs
    rm -f "$files.code"
    # A session of its own, where the system can make one, so that the terminal's Ctrl-C and hang-up do not reach it.
    session=$(command -v setsid || true)
    # shellcheck disable=SC2086 # Nothing, or one word.
    nohup $session sh "$0" keep "$name" "$@" >>"$files.log" 2>&1 </dev/null &
    printf '%s\n' $! >"$files.pid"
    for _ in 1 2 3 4 5 6 7 8 9 10; do # The process first has another name, which running() does not find.
        if running >/dev/null || [ -f "$files.code" ]; then break; fi
        sleep 0.2
    done
    printf '%s\n' $!
}

# Runs the command to its end and writes its exit code to a file; passes SIGTERM on.
keep() {
    "$@" &
    command=$!
    trap 'kill -TERM $command' TERM
    while :; do # A signal ends wait, not the command.
        code=0
        wait $command || code=$?
        kill -0 $command 2>/dev/null || break
    done
    printf '%s\n' "$code" >"$files.code"
}

status() {
    if pid=$(running); then
        printf '%s runs (process %s)\n' "$name" "$pid"
    elif [ -f "$files.code" ]; then
        printf '%s ended with code %s\n' "$name" "$(cat "$files.code")"
    elif [ -f "$files.pid" ]; then
        printf '%s was killed\n' "$name"
    else
        printf '%s was never started here\n' "$name"
    fi
}

logs() {
    [ -f "$files.log" ] || fail "$name has no log here: it was never started"
    case ${1-} in
    '') tail -n 100 "$files.log" ;;
    --follow) follow ;;
    *) fail "unknown option $1: see --help" ;;
    esac
}

# Shows the log until the command ends, then exits with the command's code.
follow() {
    tail -n 100 -f "$files.log" &
    tail=$!
    trap 'kill $tail 2>/dev/null' EXIT
    trap 'exit 130' INT TERM
    while running >/dev/null; do sleep 1; done
    sleep 1 # tail looks once a second.
    exit "$(cat "$files.code" 2>/dev/null || printf 137)"
}

stop() {
    pid=$(running) || fail "$name does not run"
    kill -TERM "$pid"
    printf '%s is asked to stop (process %s)\n' "$name" "$pid"
}

case ${1-} in
-h | --help)
    usage
    exit 0
    ;;
start | status | logs | stop | keep) ;;
*) fail "start, status, logs or stop, not '${1-}': see --help" ;;
esac
action=$1
name=${2-}
case $name in '' | *[!A-Za-z0-9._-]*) fail "'$name' is not a name: letters, digits, dots, dashes" ;; esac
shift 2
files=runs/jobs/$name
"$action" "$@"
