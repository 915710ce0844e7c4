#!/usr/bin/env bash
# What mpi.sh shows of Open MPI, as far as the library can make a difference: MPICH's sums, bits, deaths, signals.
# timeout: 400
. "$(dirname "$0")/worlds.sh"
launch=by_mpirun

for n in 1 2 4; do transport "$n"; done
transport 3 messages
check "the library is MPICH" grep -q MPICH "$out"
bits 1 2 3 4

before=$(ls -A /dev/shm)
# Hydra kills the others when one has died, at times before they can say who is lost or end with their own code.
fault 3 kill 1 '137|9' 7 -
fault 3 stop 2 '4|9' 9 'error: (rank 2 .* is lost: no sign of life|rank [01] waited 2s for)'
fault 2 nan 1 '5|9' 7 'non-finite loss \(NaN\) at step 60 on rank 1'
fault 3 desync 1 '4|9' 7 'ranks are out of step at collective'
fault 2 exit:9 1 9 7 -
check "nothing is left in /dev/shm" [ "$before" = "$(ls -A /dev/shm)" ]

signalled start-term 2 TERM 0.2
signalled train-usr1 1 USR1 0.8

plain_mpirun mpirun.mpich
launched "phalanx launch --on mpirun" '5|9' --on mpirun --ranks-per-node 3
soak 10
finish
