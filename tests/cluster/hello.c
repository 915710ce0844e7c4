// What tests/process/slurm-cluster.sh starts to see that the cluster works, whatever phalanx does: every rank says where
// it is, takes part in a sum, and the first says whether it was right.
//
//   hello              the sum and the end
//   hello wait         the sum, then sleep until a signal comes: USR1 ends it with 75
//   hello die RANK     the sum, then this rank kills itself while the others wait for it

#include <mpi.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void stop(int signal) {
    (void)signal;
    _exit(75);
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    int rank, size, length;
    char host[MPI_MAX_PROCESSOR_NAME];

    signal(SIGUSR1, stop);
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Get_processor_name(host, &length);
    long sum = rank + 1;
    MPI_Allreduce(MPI_IN_PLACE, &sum, 1, MPI_LONG, MPI_SUM, MPI_COMM_WORLD);
    printf("rank %d of %d on %s: sum %s\n", rank, size, host, sum == (long)size * (size + 1) / 2 ? "right" : "wrong");
    fflush(stdout);
    if (strcmp(what, "wait") == 0) {
        sleep(60);
        return 1;
    }
    if (strcmp(what, "die") == 0) {
        if (argc > 2 && rank == atoi(argv[2])) raise(SIGKILL);
        MPI_Barrier(MPI_COMM_WORLD);
    }
    MPI_Finalize();
    return 0;
}
