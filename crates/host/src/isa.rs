use std::fmt;

use crate::{Error, Result};

/// The instruction set that the CPU kernels are compiled for. Part of a run's fingerprint: kernels of
/// different sets round differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Isa {
    /// What every processor of the architecture has; no fused multiply-add.
    Portable,
    /// AVX2 with FMA (x86-64-v3).
    Avx2,
    /// AVX-512 F, BW, DQ and VL (x86-64-v4).
    Avx512,
}

impl Isa {
    const ALL: [Isa; 3] = [Isa::Portable, Isa::Avx2, Isa::Avx512];

    /// The name used in configuration and fingerprints.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
        }
    }

    /// Whether this processor (and its operating system) can run the set.
    pub fn available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            match self {
                Isa::Portable => true,
                Isa::Avx2 => avx2,
                Isa::Avx512 => {
                    avx2 && is_x86_feature_detected!("avx512f")
                        && is_x86_feature_detected!("avx512bw")
                        && is_x86_feature_detected!("avx512dq")
                        && is_x86_feature_detected!("avx512vl")
                }
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Isa::Portable
        }
    }

    /// The widest set that this processor has.
    pub fn detect() -> Isa {
        Isa::ALL.into_iter().rev().find(|i| i.available()).unwrap_or(Isa::Portable)
    }

    /// The set of that name; `"auto"` is [`Isa::detect`]. Fails with [`Error::Isa`] when there is none
    /// of that name or this processor lacks it.
    pub fn choose(name: &str) -> Result<Isa> {
        if name == "auto" {
            return Ok(Isa::detect());
        }
        let why = match Isa::ALL.into_iter().find(|i| i.name() == name) {
            Some(isa) if isa.available() => return Ok(isa),
            Some(_) => "this processor lacks it",
            None => "there is none of that name",
        };
        let offers: Vec<_> = Isa::ALL.iter().filter(|i| i.available()).map(|i| i.name()).collect();
        Err(Error::Isa { wanted: name.to_owned(), why, offers: offers.join(", ") })
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_unknown_ones_are_refused() {
        for isa in Isa::ALL {
            match Isa::choose(isa.name()) {
                Ok(i) => assert_eq!(i, isa),
                Err(e) => assert!(!isa.available() && e.to_string().contains("lacks it")),
            }
        }
        assert_eq!(Isa::choose("auto").unwrap(), Isa::detect());
        assert!(Isa::choose("sse9").unwrap_err().to_string().contains("none of that name"));
    }
}
