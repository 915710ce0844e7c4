# shellcheck shell=bash disable=SC2034 # used by those who source this
# A two-node Slurm on this machine; sourced by up, down, with and by tests that use the cluster.
#
# The nodes phx1 and phx2 are process trees of their own: each has its own PID, network, mount, UTS and IPC
# namespace under one init (tests/cluster/node), hence its own host name, address, /dev/shm and /var/tmp.
# When that init ends, the kernel ends every process of the node and drops its network: nothing of a
# node can outlive it. They share the disk, /tmp included, as the nodes of a cluster do. The controller,
# phx0, runs on the machine itself and is reached over the bridge.
#
# PHALANX_CLUSTER is the cluster's number, 0 to 9: each has its own folder, devices and addresses, so that
# several can be up at once.
cluster_here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cluster=${PHALANX_CLUSTER:-0}
case $cluster in
    [0-9]) ;;
    *) echo "PHALANX_CLUSTER is the number of a cluster, 0 to 9, not \`$cluster\`" >&2; exit 2 ;;
esac
cluster_state=/run/phalanx-cluster
[ "$cluster" = 0 ] || cluster_state+=-$cluster
cluster_nodes=2
cluster_cpus=4 # a node, whatever the machine has: ranks may share a core
cluster_bridge=phx$cluster
cluster_net=10.77.$cluster
cluster_conf=$cluster_state/slurm.conf

# cable N: the machine's end of node N's network cable.
cable() { echo "phx${cluster}n$1"; }

# ------------------------------------------------------------------ for tests

# on_node N COMMAND...: runs a command inside node N.
on_node() {
    local node=$1
    shift
    nsenter --target "$(node_pid "$node")" --mount --uts --ipc --net --pid --root --wd -- "$@"
}

# link N up|down: plugs the network cable of node N in, or pulls it.
link() { ip link set "$(cable "$1")" "$2"; }

# rate N BITS|off: limits what node N sends, to 1gbit, 2500mbit, …; for a symmetric link limit all nodes.
rate() {
    local tc=(nsenter --target "$(node_pid "$1")" --net -- tc qdisc)
    if [ "$2" = off ]; then
        "${tc[@]}" del dev eth0 root 2>/dev/null
        ! "${tc[@]}" show dev eth0 | grep -q tbf
    else
        # A burst of 1 MB is 2 ms at 5 Gbit/s: enough for the timer, too little to hide the limit.
        "${tc[@]}" replace dev eth0 root tbf rate "$2" burst 1mb latency 50ms
    fi
}

# mend: after a test that broke things, a cluster as good as new; it costs two seconds.
mend() { "$cluster_here/up" >/dev/null; }

# state_of N: what the controller says of node N: idle, alloc, comp, down, …
state_of() { sinfo --noheader --nodes="phx$1" --format=%t 2>/dev/null; }

# wait_idle SECONDS: until no node has a job, nor a slurmstepd that still tidies up after one; a node that the
# controller has given up is taken back.
wait_idle() {
    local end=$((SECONDS + $1)) node busy
    while :; do
        busy=
        for node in $(seq "$cluster_nodes"); do
            case $(state_of "$node") in
                idle) [ -z "$(processes_on "$node")" ] || busy+=" phx$node" ;;
                down* | drain* | drng*)
                    scontrol update NodeName="phx$node" State=RESUME 2>/dev/null
                    busy+=" phx$node"
                    ;;
                *) busy+=" phx$node" ;;
            esac
        done
        [ -z "$busy" ] && return 0
        if [ "$SECONDS" -ge "$end" ]; then
            say "not idle after $1 s:$busy"
            return 1
        fi
        sleep 0.1
    done
}

# processes_on N: what runs there besides the init and slurmd, one a line: id in the node, program.
processes_on() {
    on_node "$1" bash -c '
        for pid in /proc/[0-9]*; do
            id=${pid#/proc/}
            [ "$id" -ne 1 ] && [ "$id" -ne "$$" ] && exe=$(readlink "$pid/exe") || continue
            case ${exe##*/} in slurmd* | readlink) ;; *) echo "$id $exe" ;; esac
        done'
}

# litter: everything that a job may leave behind, one a line, sorted: processes of the binary under test that
# this test has started; on the nodes every process but their own; all files in $TMPDIR and in the nodes'
# /dev/shm and /var/tmp; in folders that others use as well, the names that are ours or MPI's.
litter() {
    {
        local pid exe node
        for pid in /proc/[0-9]*; do
            exe=$(readlink "$pid/exe") && [ "${exe##*/}" = phalanx ] || continue
            tr '\0' '\n' <"$pid/environ" | grep -qxF "PHALANX_TMP=${PHALANX_TMP:-}" && echo "process ${pid#/proc/} $exe"
        done
        [ -z "${TMPDIR:-}" ] || find "$TMPDIR" -mindepth 1
        find /tmp /var/tmp /dev/shm -mindepth 1 -maxdepth 1 -regextype egrep \
            -regex '.*/[^/]*(ompi|openmpi|mpich|pmix|prrte|vader|osc_|phalanx|phx|slurm)[^/]*'
        for node in $(seq "$cluster_nodes"); do
            processes_on "$node" | sed "s/^/phx$node: process /"
            on_node "$node" find /dev/shm /var/tmp -mindepth 1 | sed "s/^/phx$node: /"
        done
    } 2>/dev/null | sort
}

# leftovers SNAPSHOT: what is there now and was not when `litter >SNAPSHOT` was written; true when nothing is.
leftovers() {
    local more
    more=$(comm -13 "$1" <(litter))
    [ -z "$more" ] && return 0
    printf '%s\n' "$more"
    return 1
}

# ------------------------------------------------------------------ for up, down and with

# node_pid N: the process id of the node's init, seen from the machine; false when it is not running.
node_pid() {
    local pid
    pid=$(cat "$cluster_state/phx$1/pid" 2>/dev/null) && is_ours "$pid" && echo "$pid"
}

# is_ours PID: whether the process is a daemon or client of this cluster: by its program's name and by the
# state folder in its arguments (daemons) or its environment (clients), never by a number in a file alone.
is_ours() {
    local words
    mapfile -d '' -t words 2>/dev/null <"/proc/$1/cmdline" || return 1
    [ ${#words[@]} -gt 0 ] || return 1
    case ${words[0]##*/} in
        munged | slurmctld | slurmd) [[ "${words[*]}" == *[\ =]"$cluster_state/"* ]] ;;
        setsid | unshare | env | bash) [[ "${words[*]}" == *"/tests/cluster/node $cluster_state "* ]] ;;
        srun | salloc | sbatch | scancel | squeue | sinfo | scontrol)
            tr '\0' '\n' 2>/dev/null <"/proc/$1/environ" | grep -qxF "SLURM_CONF=$cluster_conf"
            ;;
        *) return 1 ;;
    esac
}

# our_processes: their ids.
our_processes() {
    local pid
    for pid in /proc/[0-9]*; do
        is_ours "${pid#/proc/}" && echo "${pid#/proc/}"
    done
}

# say MESSAGE...: to standard error.
say() { echo "cluster $cluster: $*" >&2; }

# need_root: only root can make namespaces with a network.
need_root() { [ "$(id -u)" -eq 0 ] || { say "cannot be had here: must be run as root"; exit 77; }; }

# end_orphans: tests of a run that was killed go on, with its right to the cluster. To be called by who has the
# lock: nobody else has that right now.
end_orphans() {
    local pid
    for pid in /proc/[0-9]*; do
        [ "$(tr '\0' '\n' 2>/dev/null <"$pid/environ" |
            grep -cxE "PHALANX_CLUSTER_HELD=[0-9]+|SLURM_CONF=$cluster_conf")" = 2 ] && kill -KILL "${pid#/proc/}"
    done 2>/dev/null
    return 0
}

# reserve [SECONDS]: true when no other run uses this cluster; none will until this process calls `release` or ends.
# What it starts has the same right, by PHALANX_CLUSTER_HELD. Processes that live on must be started with 9>&-.
cluster_lock=$cluster_state.lock
reserve() {
    [ -z "${PHALANX_CLUSTER_HELD:-}" ] || return 0
    while exec 9>"$cluster_lock"; do
        if ! flock --timeout "${1:-0}" 9; then
            say "another run uses it; PHALANX_CLUSTER=1 … 9 are others"
            return 1
        fi
        # Whoever had it before may have removed the file.
        if [ "$cluster_lock" -ef /proc/self/fd/9 ]; then
            end_orphans
            cluster_owner=1
            export PHALANX_CLUSTER_HELD=$$
            return 0
        fi
    done
}
release() {
    [ -n "${cluster_owner:-}" ] || return 0
    rm -f "$cluster_lock"
    exec 9>&-
    unset cluster_owner PHALANX_CLUSTER_HELD
}

# take_down: ends and removes everything that `up` makes, whatever state it is in; says what would not go.
take_down() {
    local pids pid name devices=() tries left=0
    for tries in $(seq 100); do
        pids=$(our_processes)
        [ -z "$pids" ] && break
        # shellcheck disable=SC2086
        kill -KILL $pids 2>/dev/null
        sleep 0.05
    done
    for pid in $pids; do
        say "process $pid does not end: $(tr '\0' ' ' <"/proc/$pid/cmdline")"
        left=1
    done
    # A namespace's devices go when its last process has; not to wait for that, they are deleted by name.
    for name in $(seq "$cluster_nodes"); do devices+=("$(cable "$name")"); done
    for name in "${devices[@]}" "$cluster_bridge"; do
        if [ -e "/sys/class/net/$name" ] && ! ip link delete "$name" 2>/dev/null && [ -e "/sys/class/net/$name" ]; then
            say "network device $name does not go"
            left=1
        fi
    done
    if [ -e "$cluster_state" ] && ! rm -rf "$cluster_state"; then
        say "$cluster_state cannot be removed"
        left=1
    fi
    return "$left"
}
