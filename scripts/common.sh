# shellcheck shell=sh
# Functions that the launchers share. The launchers source this file; it is never run.

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

has() {
    command -v "$1" >/dev/null 2>&1
}

# Reads KEY=VALUE lines of a file into the environment, as data: nothing in it is run or expanded. Variables that are set
# already keep their values. Values may stand in quotes; "export " before a key is ignored.
load_env() {
    [ -f "$1" ] || return 0
    number=0
    while IFS= read -r line || [ -n "$line" ]; do
        number=$((number + 1))
        line=$(printf '%s' "$line" | tr -d '\r' | sed 's/^[[:space:]]*//; s/[[:space:]]*$//; s/^export[[:space:]]*//')
        case $line in '' | '#'*) continue ;; esac
        key=${line%%=*}
        case $key in
        # The line itself is not printed: it may hold a secret.
        "$line" | '' | [0-9]* | *[!A-Za-z0-9_]*) fail "$1, line $number: not of the form KEY=VALUE" ;;
        esac
        value=${line#*=}
        case $value in
        \"*\") value=${value#\"} value=${value%\"} ;;
        \'*\') value=${value#\'} value=${value%\'} ;;
        esac
        if eval "[ -z \"\${$key+set}\" ]"; then export "$key=$value"; fi
    done <"$1"
}

# needs_program NAME SOURCE and needs_key KEY PURPOSE print a line if it is missing; checked then ends the script.
missing=0

complain() {
    printf 'error: %s\n' "$*" >&2
    missing=$((missing + 1))
}

needs_program() {
    has "$1" || complain "$1 is missing: $2"
}

needs_key() {
    eval "[ -n \"\${$1-}\" ]" || complain "$1 is not set: $2; in the environment or .env (see .env.example)"
}

checked() {
    [ "$missing" -eq 0 ] || exit 2
}

# Prints the arguments as one line of shell code, which a remote shell reads as the same arguments.
quote() {
    for word; do
        printf "'%s' " "$(printf '%s' "$word" | sed "s/'/'\\\\''/g")"
    done
}

# flag_value NAME FLAGS...: prints the last value of --NAME=VALUE or --NAME VALUE among the flags, if there is one.
flag_value() {
    wanted=--$1
    shift
    found=
    previous=
    for word; do
        case $word in "$wanted="*) found=${word#*=} ;; esac
        [ "$previous" != "$wanted" ] || found=$word
        previous=$word
    done
    printf '%s' "$found"
}

# Prints the Python interpreter of the repository, which is the current folder.
find_python() {
    if [ -n "${PYTHON-}" ]; then
        printf '%s' "$PYTHON"
    elif [ -x .venv/bin/python ]; then
        printf '%s' .venv/bin/python
    else
        printf '%s' python3
    fi
}
