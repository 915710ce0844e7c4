// What every kernel source begins with.
