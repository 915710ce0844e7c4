// BLAKE3 of whole pieces of 1 MB, as the host's library gives it: 1024 chunks of 1 KB, each compressed by a thread, and the
// tree above them, level by level, in shared memory. Source: O'Connor, Aumasson, Neves and Wilcox-O'Hearn, "BLAKE3: one
// function, fast everywhere", 2021.

enum { CHUNKS = 1024, WORDS = 256 }; // of a piece, and of a chunk
enum { CHUNK_START = 1, CHUNK_END = 2, PARENT = 4, ROOT = 8, BLOCK_BYTES = 64 };

DEV u32 iv(int i) {
    const u32 of[8] = {0x6a09e667u, 0xbb67ae85u, 0x3c6ef372u, 0xa54ff53au, 0x510e527fu, 0x9b05688cu, 0x1f83d9abu, 0x5be0cd19u};
    return of[i];
}

DEV u32 turned(u32 x, int by) { return x >> by | x << (32 - by); }

DEV void mix(u32& a, u32& b, u32& c, u32& d, u32 x, u32 y) {
    a += b + x, d = turned(d ^ a, 16), c += d, b = turned(b ^ c, 12);
    a += b + y, d = turned(d ^ a, 8), c += d, b = turned(b ^ c, 7);
}

// Compresses a block of 16 words into the chaining value `cv`. Every index is known when it is compiled, so that all stays in
// registers.
DEV void compress(u32* cv, u32* m, u32 counter, u32 flags) {
    u32 v[16];
    #pragma unroll
    for (int i = 0; i < 8; i++) v[i] = cv[i];
    #pragma unroll
    for (int i = 0; i < 4; i++) v[8 + i] = iv(i);
    v[12] = counter, v[13] = 0, v[14] = BLOCK_BYTES, v[15] = flags;
    #pragma unroll
    for (int round = 0; round < 7; round++) {
        mix(v[0], v[4], v[8], v[12], m[0], m[1]);
        mix(v[1], v[5], v[9], v[13], m[2], m[3]);
        mix(v[2], v[6], v[10], v[14], m[4], m[5]);
        mix(v[3], v[7], v[11], v[15], m[6], m[7]);
        mix(v[0], v[5], v[10], v[15], m[8], m[9]);
        mix(v[1], v[6], v[11], v[12], m[10], m[11]);
        mix(v[2], v[7], v[8], v[13], m[12], m[13]);
        mix(v[3], v[4], v[9], v[14], m[14], m[15]);
        u32 old[16];
        const int from[16] = {2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8};
        #pragma unroll
        for (int i = 0; i < 16; i++) old[i] = m[i];
        #pragma unroll
        for (int i = 0; i < 16; i++) m[i] = old[from[i]];
    }
    #pragma unroll
    for (int i = 0; i < 8; i++) cv[i] = v[i] ^ v[i + 8];
}

// A block for each piece; `out` gets its eight words.
KERNEL piece_hashes(u32* out, const u32* data) {
    __shared__ u32 values[CHUNKS * 8];
    const u32* piece = data + (u64)blockIdx.x * (CHUNKS * WORDS);
    for (u32 chunk = threadIdx.x; chunk < CHUNKS; chunk += blockDim.x) {
        u32 cv[8], m[16];
        #pragma unroll
        for (int i = 0; i < 8; i++) cv[i] = iv(i);
        #pragma unroll 1
        for (u32 block = 0; block < 16; block++) {
            const u32* from = piece + chunk * WORDS + block * 16;
            #pragma unroll
            for (int i = 0; i < 16; i++) m[i] = from[i];
            compress(cv, m, chunk, (block == 0 ? CHUNK_START : 0) | (block == 15 ? CHUNK_END : 0));
        }
        #pragma unroll
        for (int i = 0; i < 8; i++) values[chunk * 8 + i] = cv[i];
    }
    // A parent takes the place of its left child.
    for (u32 apart = 1; apart < CHUNKS; apart *= 2) {
        __syncthreads();
        for (u32 i = threadIdx.x; i < CHUNKS / (2 * apart); i += blockDim.x) {
            u32 *left = values + 16 * apart * i, *right = left + 8 * apart, cv[8], m[16];
            #pragma unroll
            for (int k = 0; k < 8; k++) cv[k] = iv(k), m[k] = left[k], m[8 + k] = right[k];
            compress(cv, m, 0, PARENT | (2 * apart == CHUNKS ? ROOT : 0));
            #pragma unroll
            for (int k = 0; k < 8; k++) left[k] = cv[k];
        }
    }
    __syncthreads();
    if (threadIdx.x < 8) out[(u64)blockIdx.x * 8 + threadIdx.x] = values[threadIdx.x];
}
