//! The vector registers of each instruction set, and the operations that `pulp` lacks.

use pulp::{Scalar128b, Simd, cast};

use super::LANES;
use crate::number_format::finite_f16_to_f32;

/// An instruction set, whose registers hold all [`LANES`] lanes together, each a part of them.
pub(crate) trait Vectors: Simd {
    /// The lanes of a register of `f32`. A pair of registers of `f64` has as many.
    const WIDTH: usize = Self::F32_LANES;
    /// Registers of all lanes.
    const PARTS: usize = LANES / Self::WIDTH;
    /// Whether a multiply-add is one instruction, which rounds once. Otherwise it is two, which round twice: exact
    /// emulation takes a function call per lane.
    const FUSES: bool;

    /// Adds 1 to the count of every lane whose bits are all 0.
    fn count_zeros(self, counts: Self::u32s, bits: Self::u32s) -> Self::u32s;

    /// The `BF16` in the lower half of every word, and that in the upper half. A `BF16` is the upper half of an `f32`.
    fn widen_bf16(self, words: Self::u32s) -> [Self::f32s; 2];

    /// As many `F16` as a register of `f32` has lanes. Those that are not finite become infinite, NaN or at least 2^16, none
    /// of which a kernel in `f32` covers.
    #[inline(always)]
    fn widen_f16(self, halves: &[[u8; 2]]) -> Self::f32s {
        let mut numbers = [0.0_f32; LANES];
        for (number, half) in numbers.iter_mut().zip(&halves[..Self::WIDTH]) {
            *number = finite_f16_to_f32(*half);
        }
        read(&numbers[..Self::WIDTH])
    }
}

/// Prefetches the cache line of an address, which may lie anywhere. Does nothing but on x86-64.
#[inline(always)]
pub(crate) fn prefetch(address: *const u8) {
    // SAFETY: a prefetch is a hint that no address makes fail. Every x86-64 has the instruction.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = address;
}

/// Reads a register from memory.
#[inline(always)]
pub(crate) fn read<R: pulp::bytemuck::Pod, V: pulp::bytemuck::Pod>(numbers: &[R]) -> V {
    pulp::bytemuck::pod_read_unaligned(pulp::bytemuck::cast_slice(numbers))
}

/// The upper half of a word.
const UPPER: u32 = 0xffff_0000;

/// A comparison gives -1 in the lanes where it holds.
macro_rules! count_by_comparison {
    ($equal:ident) => {
        #[inline(always)]
        fn count_zeros(self, counts: Self::u32s, bits: Self::u32s) -> Self::u32s {
            self.sub_u32s(counts, cast(self.$equal(bits, self.splat_u32s(0))))
        }
    };
}

macro_rules! widen_by_shift {
    ($shift:ident) => {
        #[inline(always)]
        fn widen_bf16(self, words: Self::u32s) -> [Self::f32s; 2] {
            [cast(self.$shift::<16>(words)), cast(self.and_u32s(words, self.splat_u32s(UPPER)))]
        }
    };
}

impl Vectors for Scalar128b {
    const FUSES: bool = cfg!(any(target_feature = "fma", not(target_arch = "x86_64")));

    #[inline(always)]
    fn count_zeros(self, counts: Self::u32s, bits: Self::u32s) -> Self::u32s {
        let (mut counts, bits): ([u32; 4], [u32; 4]) = (cast(counts), cast(bits));
        for (count, bits) in counts.iter_mut().zip(bits) {
            *count += u32::from(bits == 0);
        }
        cast(counts)
    }

    #[inline(always)]
    fn widen_bf16(self, words: Self::u32s) -> [Self::f32s; 2] {
        let words: [u32; 4] = cast(words);
        [cast(words.map(|word| word << 16)), cast(words.map(|word| word & UPPER))]
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::*;
    use pulp::x86::{V3, V4};

    impl Vectors for V3 {
        const FUSES: bool = true;

        count_by_comparison!(cmp_eq_u32x8);
        widen_by_shift!(shl_const_u32x8);

        #[inline(always)]
        fn widen_f16(self, halves: &[[u8; 2]]) -> Self::f32s {
            let halves = read(&halves[..Self::WIDTH]);
            // SAFETY: kernels run with a `V3` only by `Instructions::run`, where `available` found F16C. The argument is one
            // register.
            cast(unsafe { std::arch::x86_64::_mm256_cvtph_ps(halves) })
        }
    }

    impl Vectors for V4 {
        const FUSES: bool = true;

        #[inline(always)]
        fn count_zeros(self, counts: Self::u32s, bits: Self::u32s) -> Self::u32s {
            let is_zero = self.cmp_eq_u32x16(bits, self.splat_u32s(0));
            self.select_u32s(is_zero, self.add_u32s(counts, self.splat_u32s(1)), counts)
        }

        #[inline(always)]
        fn widen_bf16(self, words: Self::u32s) -> [Self::f32s; 2] {
            [cast(self.shl_const_u32x16::<16>(words)), cast(self.and_u32s(words, self.splat_u32s(UPPER)))]
        }

        #[inline(always)]
        fn widen_f16(self, halves: &[[u8; 2]]) -> Self::f32s {
            cast(self.avx512f._mm512_cvtph_ps(read(&halves[..Self::WIDTH])))
        }
    }
}

#[cfg(target_arch = "aarch64")]
impl Vectors for pulp::aarch64::Neon {
    const FUSES: bool = true;

    count_by_comparison!(cmp_eq_u32x4);
    widen_by_shift!(shl_const_u32x4);
}
