//! Room launch.
