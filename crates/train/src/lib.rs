//! Room train.
