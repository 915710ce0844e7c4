#!/usr/bin/env bash
# The two-node Slurm itself, with a bare MPI program: that its nodes are what the other tests take them for,
# and that it comes up whatever was left of it and goes without a trace.
# timeout: 120
. "$(dirname "$0")/lib.sh"

hello=$PHALANX_TMP/hello
check "the C program compiles" mpicc.openmpi -O2 -o "$hello" tests/cluster/hello.c
export OMPI_MCA_btl=^vader # as phalanx does: a killed rank leaves its segment of shared memory otherwise
litter >"$PHALANX_TMP/before"

# steps N ARGUMENT...: hello on N ranks.
steps() {
    by_srun "$1"
    shift
    "${line[@]}" "$hello" "$@" >"$out" 2>"$err"
    rc=$?
}
places() { sed -E 's/^rank ([0-9]+) of [0-9]+ on (phx[0-9]): sum right$/\1@\2/' "$out" | sort | tr '\n' ' '; }

steps 1
check "one rank" [ "$rc:$(places)" = "0:0@phx1 " ]
steps 2
check "a rank on each node" [ "$rc:$(places)" = "0:0@phx1 1@phx2 " ]
steps 4
check "two ranks on each node" [ "$rc:$(places)" = "0:0@phx1 1@phx1 2@phx2 3@phx2 " ]
check "a finished step leaves nothing" leftovers "$PHALANX_TMP/before"

begun=$SECONDS
steps 4 die 2
check "a killed rank ends the step: exit code $rc" [ "$rc" -ge 137 ]
check "within 10 seconds" [ $((SECONDS - begun)) -le 10 ]
wait_idle 10
check "a killed rank leaves nothing" leftovers "$PHALANX_TMP/before"

by_srun 2
"${line[@]}" "$hello" wait >"$out" 2>"$err" &
pid=$!
wait_for sh -c '[ "$(grep -c right "$1")" = 2 ]' - "$out"
check "scancel finds the step" scancel --signal=USR1 "$(squeue --noheader --format=%A).0"
wait "$pid"
rc=$?
check "USR1 reaches every rank, and the exit code is theirs" [ "$rc" -eq 75 ]
wait_idle 10

shared=$(on_node 1 mktemp -p /dev/shm)
check "nodes have their own /dev/shm" [ ! -e "$shared" ]
on_node 1 rm "$shared"
check "and their own host name" [ "$(on_node 2 uname -n)" = phx2 ]
reaches() { on_node "$1" timeout 1 bash -c "</dev/tcp/phx$2/6818" 2>/dev/null; }
both() { reaches 1 2 && reaches 2 1; }
cut_off() { ! reaches 1 2; }
check "they reach each other by name" both
link 2 down
check "not over a cut link" cut_off
link 2 up
check "again when it is mended" wait_for reaches 1 2

# What node 1 sends to node 2 in half a second or so, in Mbit/s.
speed() {
    on_node 2 python3 -c '
import socket, time
server = socket.create_server(("", 5201))
print("ready", flush=True)
peer, _ = server.accept()
first, start, size = peer.recv(1), time.monotonic(), 0
while data := peer.recv(1 << 20):
    size += len(data)
print(round(size * 8e-6 / (time.monotonic() - start)))' >"$PHALANX_TMP/speed" &
    wait_for grep -q ready "$PHALANX_TMP/speed"
    on_node 1 python3 -c '
import socket, sys
socket.create_connection(("phx2", 5201)).sendall(bytes(int(sys.argv[1])))' "$1"
    wait "$!"
    tail -n 1 "$PHALANX_TMP/speed"
}
rate 1 100mbit
rate 2 100mbit
slow=$(speed 10000000)
check "a limit of 100 Mbit/s holds ($slow)" python3 -c "assert 80 <= $slow <= 120"
rate 1 off
rate 2 off
fast=$(speed 100000000)
check "and is gone when it is taken off ($fast)" [ "$fast" -gt 1000 ]

# Cut off in the middle: no init, no controller, no munged, a lost device, a stale file.
before=$(ip -brief link | grep -v "^phx$cluster" | cut -d' ' -f1 | sort)
"$cluster_here/up" >/dev/null 2>&1 9>&- &
sleep "0.$((RANDOM % 10))"
kill -KILL "$!" 2>/dev/null
wait "$!" 2>/dev/null
for pid in $(our_processes); do [ $((RANDOM % 2)) -eq 0 ] && kill -KILL "$pid"; done
ip link delete "$(cable 1)" 2>/dev/null
echo 1 >"$cluster_state/phx1/pid"
check "it comes up after a run that was cut off" mend
steps 2
check "and works" [ "$rc:$(places)" = "0:0@phx1 1@phx2 " ]
check "down removes it" "$cluster_here/down"
check "no process is left" [ -z "$(our_processes)" ]
check "no device is left" [ -z "$(ip -brief link | grep "^phx$cluster")" ]
check "no file is left" [ ! -e "$cluster_state" ]
check "other devices are as they were" [ "$before" = "$(ip -brief link | cut -d' ' -f1 | sort)" ]
check "down may be run twice" "$cluster_here/down"
check "up" mend
finish
