//! Room gpu.
