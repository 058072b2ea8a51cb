//! Compiles the arithmetic for every instruction set and selects one at run time.
//!
//! A [`Kernel`] is written once and compiled for every set; [`Instructions`] selects the set that runs.
//!
//! # How it works
//!
//! A kernel sums its numbers in [`LANES`] lanes, whatever the width of a register. One AVX-512 register of `f32` holds
//! all lanes, one of AVX2 half of them, one of NEON or SSE a quarter: a *part*. The lanes are independent until they are
//! added up, so a kernel goes over its numbers once for each part. They are in the core's first cache by then, and the
//! accumulators of one part fit into the registers, which those of all parts would not.
//!
//! Every multiply-add is fused and every sum has a fixed order over the lanes, so all sets give the same bits, but those
//! that lack a fused multiply-add: x86-64 before 2013. Its two roundings change a score by less than 5e-7 of it, or by
//! 1.5e-6 where every change undoes the one before. The matrix products of `gemm` have other last bits on Arm.

pub(crate) mod lanes;
pub(crate) mod real;
pub(crate) mod vectors;

pub(crate) use vectors::Vectors;

use crate::error::{Error, Result};

/// The lanes that every kernel sums in.
pub const LANES: usize = 16;

const VARIABLE: &str = "ALPS_INSTRUCTIONS";

/// The most parts that the lanes are divided into: registers of 4 numbers.
pub(crate) const MOST_PARTS: usize = LANES / 4;

/// An instruction set that this machine has.
#[derive(Clone, Copy, Debug)]
pub enum Instructions {
    /// The set that every machine of the target has.
    Portable,
    /// AVX2 with FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    #[non_exhaustive] // `pulp` does not look for F16C
    Avx2(pulp::x86::V3),
    /// AVX-512.
    #[cfg(target_arch = "x86_64")]
    Avx512(pulp::x86::V4),
    /// NEON.
    #[cfg(target_arch = "aarch64")]
    Neon(pulp::aarch64::Neon),
}

/// A computation that is compiled once for every instruction set.
pub(crate) trait Kernel {
    type Output;

    /// Computes the output. An implementation is `#[inline(always)]`, as is everything it calls.
    fn run<S: Vectors>(self, simd: S) -> Self::Output;
}

impl Instructions {
    /// Every set that this machine has, with the widest first.
    pub fn available() -> Vec<Self> {
        let mut sets = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            sets.extend(pulp::x86::V4::try_new().map(Self::Avx512));
            let has_f16c = std::arch::is_x86_feature_detected!("f16c");
            sets.extend(pulp::x86::V3::try_new().filter(|_| has_f16c).map(Self::Avx2));
        }
        #[cfg(target_arch = "aarch64")]
        sets.extend(pulp::aarch64::Neon::try_new().map(Self::Neon));
        sets.push(Self::Portable);
        sets
    }

    /// The widest set that this machine has.
    pub fn best() -> Self {
        Self::available()[0]
    }

    /// The set that the environment variable `ALPS_INSTRUCTIONS` names, for tests and measurements; without it, the
    /// widest that this machine has.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] if this machine has no such set.
    pub fn from_environment() -> Result<Self> {
        let Ok(wanted) = std::env::var(VARIABLE) else { return Ok(Self::best()) };
        let available = Self::available();
        available.iter().copied().find(|set| set.name() == wanted).ok_or_else(|| {
            let names: Vec<_> = available.iter().map(|set| set.name()).collect();
            let names = names.join(", ");
            Error::Argument(format!(
                "the environment variable {VARIABLE} is {wanted:?}; this machine has {names}"
            ))
        })
    }

    /// The name of the set, as people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => "AVX2",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => "AVX-512",
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_) => "NEON",
        }
    }

    /// Whether a multiply-add of this set rounds once. All sets that do give the same bits.
    pub fn fuses(self) -> bool {
        match self {
            Self::Portable => pulp::Scalar128b::FUSES,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => pulp::x86::V3::FUSES,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => pulp::x86::V4::FUSES,
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_) => pulp::aarch64::Neon::FUSES,
        }
    }

    /// Runs the kernel that was compiled for this set.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Self::Portable => kernel.run(pulp::Scalar128b),
            // SAFETY: `available` found every instruction of the set. Only this crate can make this variant, and makes it
            // there alone.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(simd) => unsafe { run_avx2(simd, kernel) },
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(simd) => simd.vectorize(
                #[inline(always)]
                || {
                    align_stack();
                    kernel.run(simd)
                },
            ),
            #[cfg(target_arch = "aarch64")]
            Self::Neon(simd) => simd.vectorize(
                #[inline(always)]
                || kernel.run(simd),
            ),
        }
    }

    /// Runs ordinary loops, which the compiler vectorises for this set. The bound makes the closure `FnOnce`: another
    /// one would be called through a function that is not inlined, and so is compiled without the set.
    #[inline]
    pub(crate) fn run_loops<Output>(self, loops: impl FnOnce() -> Output) -> Output {
        self.run(Loops(loops))
    }
}

/// Runs a kernel, compiled for a set that includes F16C, which that of `pulp` lacks.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
fn run_avx2<K: Kernel>(simd: pulp::x86::V3, kernel: K) -> K::Output {
    align_stack();
    kernel.run(simd)
}

/// Makes the compiler align the stack of the function that this is inlined into. It does so only for a function with an aligned
/// variable. Elsewhere half of the vectors that it keeps on the stack cross a line of the cache, and some a page, which can make a
/// loop twice as slow.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn align_stack() {
    #[repr(align(64))]
    struct Aligned(u8);
    let _ = std::hint::black_box(&mut Aligned(0)).0;
}

struct Loops<F>(F);

impl<Output, F: FnOnce() -> Output> Kernel for Loops<F> {
    type Output = Output;

    #[inline(always)]
    fn run<S: Vectors>(self, _: S) -> Output {
        (self.0)()
    }
}
