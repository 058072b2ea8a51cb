//! Which vector instructions the arithmetic runs on.
//!
//! The arithmetic itself is written once, as loops over arrays of [`LANES`] numbers that the compiler
//! turns into vector code; [`Instructions::run`] compiles what it is given once per instruction set.
//! Every multiply-add is fused and every sum has a fixed order over the lanes, so all sets give the
//! same bits.

/// Numbers handled side by side: one AVX-512 register of `f32`, two of AVX2, four of NEON.
pub const LANES: usize = 16;

/// An instruction set that this machine has.
#[derive(Clone, Copy, Debug)]
pub enum Instructions {
    /// What every machine of the target has. Without fused multiply-add in hardware (x86-64 before
    /// 2013) it is emulated, exactly but slowly.
    Portable,
    /// AVX2 with FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2(pulp::x86::V3),
    /// AVX-512.
    #[cfg(target_arch = "x86_64")]
    Avx512(pulp::x86::V4),
}

impl Instructions {
    /// Every set that this machine has, the widest first.
    pub fn available() -> Vec<Self> {
        let mut sets = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            sets.extend(pulp::x86::V4::try_new().map(Self::Avx512));
            sets.extend(pulp::x86::V3::try_new().map(Self::Avx2));
        }
        sets.push(Self::Portable);
        sets
    }

    /// The widest set that this machine has.
    pub fn best() -> Self {
        Self::available()[0]
    }

    /// The name of the set, as people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => "AVX2",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => "AVX-512",
        }
    }

    /// Runs `work` with everything that is inlined into it compiled for this set.
    #[inline]
    pub fn run<Output>(self, work: impl FnOnce() -> Output) -> Output {
        match self {
            Self::Portable => work(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(simd) => simd.vectorize(work),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(simd) => simd.vectorize(work),
        }
    }
}
