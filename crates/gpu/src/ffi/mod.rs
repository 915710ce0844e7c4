//! Tables of function pointers, one for each of NVIDIA's libraries, filled when the library is loaded.
//!
//! Names are the exported symbols' (with their `_v2`), so that they can be looked up in NVIDIA's manuals.
//! Opaque handles are addresses that this side never follows and travel as [`Handle`].

pub(crate) mod blas_lt;
pub(crate) mod dnn;
pub(crate) mod driver;
pub(crate) mod nccl;
pub(crate) mod nvrtc;

/// An opaque pointer of a library: context, stream, descriptor, …
pub(crate) type Handle = usize;

/// A struct of function pointers and `bind`, which looks each up by its field's name.
macro_rules! table {
    ($(#[$note:meta])* $table:ident { $($name:ident: fn($($argument:ty),* $(,)?) -> $result:ty;)* }) => {
        $(#[$note])*
        #[allow(non_snake_case, dead_code)]
        pub(crate) struct $table {
            $(pub(crate) $name: unsafe extern "C" fn($($argument),*) -> $result,)*
        }

        impl $table {
            /// Looks up every function. Fails with the first that is missing.
            pub(crate) fn bind(library: &crate::library::Loaded) -> crate::Result<Self> {
                Ok($table {
                    $($name: {
                        let address = library.symbol(stringify!($name))?;
                        // SAFETY: a non-null address of the function of this name, whose signature in
                        // NVIDIA's header is the one that is written here.
                        unsafe { std::mem::transmute::<usize, unsafe extern "C" fn($($argument),*) -> $result>(address) }
                    },)*
                })
            }
        }
    };
}
pub(crate) use table;
