//! Compiles the arithmetic for every instruction set and selects one at run time.
//!
//! A [`Kernel`] is written once, over vectors of [`LANES`] numbers, and compiled for every set;
//! [`Instructions`] selects the set that runs. Every multiply-add is fused and every sum has a fixed order
//! over the lanes, so all sets give the same bits.

pub(crate) mod lanes;
pub(crate) mod real;

use pulp::{Simd, f32x16, f64x8, u32x16};

/// Numbers of a vector: one AVX-512 register of `f32`, two of AVX2, four of NEON.
pub const LANES: usize = 16;

/// An instruction set that this machine has.
#[derive(Clone, Copy, Debug)]
pub enum Instructions {
    /// The set that every machine of the target has. Where the hardware lacks fused multiply-add (x86-64
    /// before 2013) it is emulated, exactly but slowly.
    Portable,
    /// AVX2 with FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2(pulp::x86::V3),
    /// AVX-512.
    #[cfg(target_arch = "x86_64")]
    Avx512(pulp::x86::V4),
}

/// An instruction set with vectors of [`LANES`] numbers, in however many registers.
pub(crate) trait Vectors: Simd<f32s = f32x16, u32s = u32x16, f64s = f64x8> {}

impl<S: Simd<f32s = f32x16, u32s = u32x16, f64s = f64x8>> Vectors for S {}

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

    /// Runs the kernel that was compiled for this set.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Self::Portable => kernel.run(pulp::Scalar512b),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(simd) => simd.vectorize(
                #[inline(always)]
                || kernel.run(pulp::x86::V3_512b(simd)),
            ),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(simd) => simd.vectorize(
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

struct Loops<F>(F);

impl<Output, F: FnOnce() -> Output> Kernel for Loops<F> {
    type Output = Output;

    #[inline(always)]
    fn run<S: Vectors>(self, _: S) -> Output {
        (self.0)()
    }
}
