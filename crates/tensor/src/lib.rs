//! Room tensor.
