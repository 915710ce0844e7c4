// Numbers that a graph's kernels read, set before it is launched: they travel as arguments, so nothing of the host's need
// stay as it is until they are there.
struct Words { u32 w[120]; };
KERNEL set_words(u32* to, u32 n, Words from) {
    if (threadIdx.x < n) to[threadIdx.x] = from.w[threadIdx.x];
}
