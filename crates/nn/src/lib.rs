//! Room nn.
