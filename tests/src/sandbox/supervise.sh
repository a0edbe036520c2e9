# shellcheck shell=sh
# Runs a command so that nothing of it can outlive the harness.
# $1: a directory to remove when the harness is gone, or ""; the rest: the command.
#
# Standard input is the lifeline: the harness holds its other end, and the kernel closes that however the
# harness ends. As process 1 of a pid namespace, our own end takes everything with it.
set -u
doomed=$1
shift
exec 3<&0 </dev/null
setsid "$@" 3<&- &
group=$!
{
    while read -r word <&3; do
        case $word in
        stop) kill -s TERM "$group" ;;
        kill) kill -s KILL -- "-$group" ;;
        esac
    done
    [ -z "$doomed" ] || : >"$doomed/harness-gone"
    kill -s KILL -- "-$group"
} 2>/dev/null &
watcher=$!
wait "$group"
status=$?
kill -s KILL -- "-$group" 2>/dev/null
if [ -n "$doomed" ] && [ -e "$doomed/harness-gone" ]; then
    [ $$ != 1 ] || kill -s KILL -- -1
    rm -rf "$doomed"
fi
kill -s KILL "$watcher" 2>/dev/null
exit "$status"
