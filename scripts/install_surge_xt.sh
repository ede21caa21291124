#!/bin/sh
# Fetches the official Surge XT release and unpacks its VST3 plugin, without root. See --help.
set -eu

VERSION=1.3.4
FILE=surge-xt-linux-x64-$VERSION.deb
URL=https://github.com/surge-synthesizer/releases-xt/releases/download/$VERSION/$FILE
SHA256=a6e55064487f624147d515b9ae5fc79a568b69746675b2083abde628ca7bb151
PLUGIN='Surge XT.vst3'
LIBRARY="$PLUGIN/Contents/x86_64-linux/Surge XT.so"
# The plugin looks for this folder of wavetables and presets beside itself, or in a folder above.
DATA=SurgeXTData

usage() {
    cat <<END
usage: scripts/install_surge_xt.sh [FOLDER]

Fetches $FILE of Surge XT's official release, checks its SHA-256 and unpacks
the plugin as FOLDER/$PLUGIN, its factory data as FOLDER/$DATA; FOLDER is plugins/
of this repository if not given. Nothing else is changed and root is not needed. A plugin
that exists already is not replaced. Missing system libraries are named (exit code 1).

Surge XT is free software under the GNU GPL version 3 (https://surge-synthesizer.github.io).
It is a program of its own: synthjax does not contain it.

  SURGE_XT_URL     another place to fetch the same file from: a mirror, or file:///path
                   on a machine without internet
  SURGE_XT_SHA256  only with SURGE_XT_URL: the SHA-256 of the file there, if it is another
                   build of Surge XT
END
}

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

has() {
    command -v "$1" >/dev/null 2>&1
}

check_machine() {
    [ "$(uname -s) $(uname -m)" = 'Linux x86_64' ] ||
        fail "this release is for Linux on x86-64, not $(uname -s) on $(uname -m):" \
            'install Surge XT from https://surge-synthesizer.github.io and name it with --plugin'
    has sha256sum || fail 'sha256sum is missing: install coreutils'
    has dpkg-deb || { has ar && has tar; } ||
        fail 'dpkg-deb is missing: install dpkg, or binutils (for ar) and tar'
}

# download URL FILE
download() {
    case $1 in
    file://*)
        cp "${1#file://}" "$2" 2>"$work/log" || fail "cannot copy ${1#file://}: $(tail -n 1 "$work/log")"
        return
        ;;
    esac
    if has curl; then
        if [ -t 2 ]; then progress=--progress-bar; else progress='--silent --show-error'; fi
        # shellcheck disable=SC2086 # Two options, or one.
        fetch curl $progress --fail --location --output "$2" "$1"
    elif has wget; then
        if [ -t 2 ]; then progress='--quiet --show-progress'; else progress=--no-verbose; fi
        # shellcheck disable=SC2086
        fetch wget $progress --tries=3 --output-document="$2" "$1"
    else
        fail 'curl and wget are missing: install one of them, or set SURGE_XT_URL=file:///path to a copy'
    fi || fail "cannot download $1: $(tail -n 1 "$work/log"); set SURGE_XT_URL to a mirror or file:///path," \
        'or SURGE_XT_PLUGIN to a plugin that is installed already'
}

# Runs a command. On a terminal it shows its progress there; else its messages go to the log.
fetch() {
    : >"$work/log"
    if [ -t 2 ]; then "$@"; else "$@" 2>"$work/log"; fi
}

# unpack DEB FOLDER
unpack() {
    mkdir "$2"
    if has dpkg-deb; then
        dpkg-deb -x "$1" "$2"
    else
        # tar finds out by itself how the member is compressed.
        member=$(ar t "$1" | grep '^data\.tar') && ar p "$1" "$member" >"$2/$member" &&
            tar -xf "$2/$member" -C "$2"
    fi
}

# Removes the folders of killed runs.
remove_leftovers() {
    for leftover in "$1"/.surge-xt.*; do
        if [ -d "$leftover" ] && ! kill -0 "${leftover##*.}" 2>/dev/null; then rm -rf "$leftover"; fi
    done
}

install_plugin() {
    mkdir -p "$folder" 2>/dev/null || fail "cannot make the folder $folder"
    remove_leftovers "$folder"
    # In the same folder, so that one rename puts the plugin in its place.
    work=$folder/.surge-xt.$$
    mkdir "$work" 2>/dev/null || fail "cannot write to $folder"
    trap 'rm -rf "$work"' EXIT
    trap 'printf "error: interrupted: nothing was installed\n" >&2; exit 130' INT TERM HUP
    printf 'fetching %s\n' "$url"
    download "$url" "$work/package.deb"
    found=$(sha256sum <"$work/package.deb")
    found=${found%% *}
    [ "$found" = "$sha256" ] ||
        fail "$url is damaged or another file: its SHA-256 is $found, not $sha256; nothing was installed"
    unpack "$work/package.deb" "$work/root" 2>"$work/log" ||
        fail "cannot unpack $url: $(tail -n 1 "$work/log")"
    [ -f "$work/root/usr/lib/vst3/$LIBRARY" ] || fail "$url holds no usr/lib/vst3/$LIBRARY"
    if [ -d "$work/root/usr/share/surge-xt" ] && [ ! -e "$folder/$DATA" ]; then
        mv -T "$work/root/usr/share/surge-xt" "$folder/$DATA" || fail "cannot write to $folder"
    fi
    # Last, because a plugin in its place means that the installation is complete.
    mv -T "$work/root/usr/lib/vst3/$PLUGIN" "$folder/$PLUGIN" || fail "cannot write to $folder"
    printf 'Surge XT (GPL-3) is in %s\n' "$folder/$PLUGIN"
}

# Prints the Debian package of a library. It is named after the file: libxcb-cursor.so.0 is in libxcb-cursor0,
# libX11.so.6 in libx11-6.
package_of() {
    printf '%s\n' "$1" | tr 'A-Z_' 'a-z-' | sed 's/\([0-9]\)\.so\./\1-/; s/\.so\.//; s/\..*//'
}

check_libraries() {
    missing=$(LC_ALL=C ldd "$folder/$LIBRARY" 2>/dev/null | sed -n 's/^[[:space:]]*\([^ ]*\) => not found.*/\1/p' | sort -u)
    [ -n "$missing" ] || return 0
    packages=$(for library in $missing; do package_of "$library"; done)
    printf 'error: system libraries are missing: %s; on Debian or Ubuntu: apt-get install %s\n' \
        "$(printf '%s' "$missing" | tr '\n' ' ')" "$(printf '%s' "$packages" | tr '\n' ' ')" >&2
    return 1
}

case ${1-} in
-h | --help)
    usage
    exit 0
    ;;
-*) fail "unknown option $1: see --help" ;;
esac
[ $# -le 1 ] || fail 'one FOLDER at most: see --help'
[ -z "${SURGE_XT_SHA256-}" ] || [ -n "${SURGE_XT_URL-}" ] ||
    fail 'SURGE_XT_SHA256 is only for another SURGE_XT_URL: set both or none'

folder=${1-$(cd "$(dirname "$0")/.." && pwd)/plugins}
url=${SURGE_XT_URL-$URL}
sha256=$(printf '%s' "${SURGE_XT_SHA256-$SHA256}" | tr 'A-F' 'a-f')

check_machine
if [ -e "$folder/$PLUGIN" ]; then
    printf 'Surge XT is there already: %s\n' "$folder/$PLUGIN"
else
    install_plugin
fi
check_libraries
