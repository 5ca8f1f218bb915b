#!/bin/sh
# Build peerd, see that the peerd that is there afterwards works, and put the former package back where it does not.
#
#   deploy.sh ROLLBACK SECONDS COMMAND
#
# ROLLBACK is yes or no, SECONDS how long COMMAND may take. The exit status is that of COMMAND, or 1 where peerd does not
# work. peerd runs this as one of its own commands, in a scope that outlives the peerd that started it.
set -u

rollback=$1
seconds=$2
command=$3
patience=60
state=/var/lib/peerd
kept=$state/rollback

# Also in the journal, for a caller that was cut off.
say() {
    printf 'peerd: %s\n' "$1" >&2
    printf '%s\n' "$1" | systemd-cat --identifier=peerd 2>/dev/null
}

# Pass on what is written, and go on where nobody reads it any more: to the second output it can always be written.
relay() {
    trap '' TERM
    exec tee -p /dev/null
}

# Let all that was written come through. What the build left running may keep the relays from ever ending.
# shellcheck disable=SC2317  # The trap below calls it.
finish() {
    exec >/dev/null 2>&1
    tries=50
    while [ "$tries" -gt 0 ] && { kill -0 "$out" || kill -0 "$err"; }; do
        sleep 0.1
        tries=$((tries - 1))
    done
    kill -KILL "$out" "$err"
}

# One field of getPeerStatus.
status_of() {
    timeout 20 d getPeerStatus --json 2>/dev/null | sed -n "s/^ *\"$1\": \"\\{0,1\\}\\([^\",]*\\)\"\\{0,1\\},\\{0,1\\}\$/\\1/p"
}

is_package() {
    command -v dpkg-deb >/dev/null && dpkg-query --show peerd >/dev/null 2>&1
}

# The installed package as a .deb, made of what is installed: dpkg keeps none.
keep_package() {
    rm -rf "$kept" && mkdir -m 700 "$kept" && mkdir -p "$kept/tree/DEBIAN" || return 1
    dpkg-query --status peerd |
        awk '/^[^ ]/ { skip = $1 == "Status:" || $1 == "Conffiles:" } !skip' >"$kept/tree/DEBIAN/control" || return 1
    for part in conffiles md5sums preinst postinst prerm postrm triggers; do
        if dpkg-query --control-show peerd "$part" >"$kept/part" 2>/dev/null; then
            install -m 755 "$kept/part" "$kept/tree/DEBIAN/$part" || return 1
        fi
    done
    dpkg-query --listfiles peerd | grep -vxF /. |
        tar -C / --create --no-recursion --files-from=- 2>/dev/null | tar -C "$kept/tree" --extract || return 1
    dpkg-deb --root-owner-group --build "$kept/tree" "$kept/peerd.deb" >/dev/null && rm -rf "$kept/tree" "$kept/part"
}

# What keeps peerd from working, or nothing.
complaint() {
    if ! systemctl is-active --quiet peerd.service; then
        echo "peerd.service is $(systemctl show -P ActiveState peerd.service)"
    elif ! timeout 10 d ping >/dev/null 2>&1; then
        echo 'peerd does not answer'
    elif [ "$(timeout 20 d execOnPeer --peer "$id" --directory / -- echo works 2>/dev/null)" != works ]; then
        echo 'peerd runs no command'
    elif [ "$connected" = true ] && [ "$(status_of connected_to_leader)" != true ]; then
        echo 'peerd is not connected to its leader'
    fi
}

# Wait until peerd works, and still does a moment later; the last complaint in $trouble where it does not.
works() {
    deadline=$(($(date +%s) + patience))
    while :; do
        trouble=$(complaint)
        if [ -z "$trouble" ]; then
            process=$(systemctl show -P MainPID peerd.service)
            sleep 2
            trouble=$(complaint)
            if [ -z "$trouble" ] && [ "$(systemctl show -P MainPID peerd.service)" = "$process" ]; then
                return 0
            fi
        fi
        [ "$(date +%s)" -lt "$deadline" ] || return 1
        sleep 1
    done
}

# A stop of peerd breaks the pipes to it. That must end neither the build nor what is done after it.
relays=$(mktemp --directory /run/peerd-deploy.XXXXXX) || exit 1
mkfifo "$relays/out" "$relays/err" || exit 1
relay <"$relays/out" &
out=$!
relay <"$relays/err" >&2 &
err=$!
exec >"$relays/out" 2>"$relays/err"
rm -r "$relays"
trap finish EXIT

# The directory, which is there on a full disk, too, and stays the same when a package replaces this script.
exec 9<"$state"
if ! flock --nonblock 9; then
    say 'another deploy runs on this machine'
    exit 1
fi

id=$(status_of peer_id)
connected=$(status_of connected_to_leader)
started=$(systemctl show -P InvocationID peerd.service)
version=$(dpkg-query --show --showformat='${Version}' peerd 2>/dev/null)
if [ "$rollback" = yes ] && ! is_package; then
    say 'peerd was not installed as a package, so there will be no way back'
    rollback=no
elif [ "$rollback" = yes ] && ! keep_package; then
    rm -rf "$kept"
    say 'the installed package cannot be kept, so there would be no way back: nothing was built (see --no-rollback)'
    exit 1
fi

# What the build leaves running is no deploy any more.
began=$(date +%s)
timeout --kill-after=5 "$seconds" /bin/sh -c "$command" 9<&-
status=$?
took=$(($(date +%s) - began))
if { [ "$status" -eq 124 ] || [ "$status" -eq 137 ]; } && [ "$took" -ge "${seconds%.*}" ]; then
    status=124
    say "the build took longer than $seconds s and was stopped; if it needs longer: --timeout, or build-timeout there"
fi

if [ "$(systemctl show -P InvocationID peerd.service)" = "$started" ] && [ -z "$(complaint)" ]; then
    rm -rf "$kept"
    exit "$status"
fi
say 'peerd was restarted, seeing whether it works'
if works; then
    rm -rf "$kept"
    say "peerd $(status_of daemon_version) works"
    exit "$status"
fi
say "$trouble"
if [ "$rollback" != yes ]; then
    say 'not rolled back'
    exit 1
fi
say "rolling back to peerd $version"
if ! DEBIAN_FRONTEND=noninteractive dpkg --install --force-confold --force-downgrade "$kept/peerd.deb" >&2; then
    say "peerd $version cannot be put back; its package is $kept/peerd.deb"
elif systemctl restart peerd.service && works; then
    rm -rf "$kept"
    say "rolled back to peerd $version, which works"
else
    say "peerd $version does not work either; its package is $kept/peerd.deb"
fi
exit 1
