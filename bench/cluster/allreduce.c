// What a bare MPI_Allreduce takes: the yardstick for `phalanx bench allreduce` in run.py.
//
//   mpicc -O2 -o allreduce allreduce.c && mpirun -n 2 ./allreduce BYTES ROUNDS
//
// Sums of floats, in place, each round after a barrier. A round's time is that of the rank that took longest, and
// the figure is the median over the rounds; rank 0 prints it as JSON. The first sum is checked and not timed.

#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void *need(size_t bytes) {
    void *memory = malloc(bytes);
    if (!memory) {
        fprintf(stderr, "allreduce: no memory for %zu bytes\n", bytes);
        MPI_Abort(MPI_COMM_WORLD, 1);
    }
    return memory;
}

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    int rank, size;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    long bytes = argc > 1 ? atol(argv[1]) : 0, rounds = argc > 2 ? atol(argv[2]) : 0;
    long count = bytes / (long)sizeof(float);
    if (argc != 3 || count < 1 || count > 0x7fffffff || rounds < 1) {
        if (rank == 0) fprintf(stderr, "usage: allreduce BYTES ROUNDS\n");
        MPI_Finalize();
        return 2;
    }
    float *data = need(count * sizeof *data);
    double *times = need(rounds * sizeof *times);
    for (long i = 0; i < count; i++) data[i] = (float)(rank + 1);
    MPI_Allreduce(MPI_IN_PLACE, data, (int)count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    for (long i = 0; i < count; i++) {
        if (data[i] != (float)(size * (size + 1) / 2)) {
            fprintf(stderr, "allreduce: element %ld is summed wrongly on rank %d\n", i, rank);
            MPI_Abort(MPI_COMM_WORLD, 1);
        }
    }
    // Zeros stay finite however often they are summed.
    memset(data, 0, count * sizeof *data);
    for (long i = 0; i < rounds; i++) {
        MPI_Barrier(MPI_COMM_WORLD);
        double start = MPI_Wtime();
        MPI_Allreduce(MPI_IN_PLACE, data, (int)count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
        times[i] = MPI_Wtime() - start;
    }
    MPI_Allreduce(MPI_IN_PLACE, times, (int)rounds, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    qsort(times, rounds, sizeof *times, compare);
    double median = times[rounds / 2];
    if (rank == 0) {
        printf("{\"ranks\": %d, \"bytes\": %ld, \"rounds\": %ld, \"seconds_p50\": %.9f, \"bus_bandwidth_gb_s\": %.6f}\n",
               size, count * 4, rounds, median, 2.0 * (size - 1) / size * count * 4e-9 / median);
    }
    MPI_Finalize();
    return 0;
}
