//! The GPU's side of the house: CUDA contexts, streams, memory and libraries.
//!
//! At this stage the room only looks for a driver and says, with everything it tried, why no device
//! can be opened. [`Context`] and [`Buffer`] have no values yet, so the CUDA arms of the storage and
//! device enums are checked by the compiler and cannot be reached.

use std::convert::Infallible;

/// Why no GPU can be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The driver's library was not found or not loadable.
    #[error(
        "no CUDA driver: tried {}; {hint}",
        .tried.join(", ")
    )]
    NoDriver {
        /// Every name that was tried with the loader's answer.
        tried: Vec<String>,
        /// What to do.
        hint: &'static str,
    },
    /// A driver is there, but this build has no kernels for it.
    #[error(
        "CUDA device {ordinal}: a driver was found ({driver}), but this build has no CUDA kernels yet; use --device cpu"
    )]
    NoKernels {
        /// The device that was asked for.
        ordinal: usize,
        /// The library that was loaded.
        driver: &'static str,
    },
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An open GPU. Has no values at this stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context(Infallible);

/// A block of device memory. Has no values at this stage.
#[derive(Debug, Clone, Copy)]
pub struct Buffer(Infallible);

impl Buffer {
    /// Proves that no such buffer exists, for the arms of a match that cannot be reached.
    pub fn never(&self) -> ! {
        match self.0 {}
    }
}

impl Context {
    /// Opens device `ordinal`. Fails with [`Error::NoDriver`] or [`Error::NoKernels`].
    pub fn open(ordinal: usize) -> Result<Self> {
        let mut tried = Vec::new();
        for name in ["libcuda.so.1", "libcuda.so"] {
            // SAFETY: the driver's library has no initialisers with preconditions; nothing of it is
            // called, and it is closed again at once.
            match unsafe { libloading::Library::new(name) } {
                Ok(_) => return Err(Error::NoKernels { ordinal, driver: name }),
                Err(e) => tried.push(format!("{name} ({e})")),
            }
        }
        let hint = "install NVIDIA's driver, or use --device cpu";
        Err(Error::NoDriver { tried, hint })
    }

    /// Proves that no such context exists, for the arms of a match that cannot be reached.
    pub fn never(&self) -> ! {
        match self.0 {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opening_names_what_was_tried_and_what_to_do() {
        let text = Context::open(0).unwrap_err().to_string();
        assert!(text.contains("--device cpu") && text.contains("driver"), "{text}");
    }
}
