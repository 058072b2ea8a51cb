//! Runs an operation on the entries of a block, compiled for the precision and the series of the block.

use super::block::{BLOCK, Bf16Block, Block, BlockEntries, DecodedBlock, F16Block, F32Block};
use super::precision::{F64Method, Precision, SeriesLengths};
use super::series::FULL;
use super::softmax_sums::SoftmaxSettings;
use super::weight_change::Magnitudes;
use super::weight_vector::WeightVector;
use crate::number_format::Dtype;
use crate::simd::real::Real;

/// An operation on the exponents x and y of a block.
///
/// The first `valid` entries of a block exist; the others add nothing. In `f32` all exist.
pub(crate) trait BlockOperation {
    /// Takes exponentials by a polynomial of degree `DEGREE` in m and `POWERS` powers of y. Returns the magnitudes of
    /// the block, and does nothing if the series do not cover them.
    fn f32_series<E: BlockEntries<Number = f32>, const DEGREE: usize, const POWERS: usize>(
        &mut self,
        entries: E,
    ) -> Magnitudes;

    /// Takes exponentials by `POWERS` powers of y.
    fn f64_series<const POWERS: usize>(&mut self, entries: DecodedBlock<f64>, valid: usize);

    /// Takes exponentials that no series covers.
    fn closed_form(&mut self, x: &Block<f64>, y: &Block<f64>, valid: usize);

    /// Skips a block that needs an offset and has none.
    fn out_of_range(&mut self);
}

/// The memory that blocks are decoded into, allocated once one has to be and kept from block to block, since
/// clearing it costs as much as filling it.
#[derive(Debug, Default)]
pub(crate) struct DecodeBuffers(Option<Box<Buffers>>);

#[derive(Debug)]
struct Buffers {
    f32s: [Block<f32>; 2],
    f64s: [Block<f64>; 2],
}

/// An exponent this far below the largest: e to this power adds nothing to any sum.
const NEGLIGIBLE_EXPONENT: f64 = -700.0;

impl DecodeBuffers {
    fn get(&mut self) -> &mut Buffers {
        self.0.get_or_insert_with(|| Box::new(Buffers { f32s: [[0.0; BLOCK]; 2], f64s: [[0.0; BLOCK]; 2] }))
    }

    /// Decodes a block in `f64`: theta_B and theta_T - theta_B.
    pub(crate) fn decode_f64(&mut self, block: VectorBlock) -> &mut [Block<f64>; 2] {
        let decoded = &mut self.get().f64s;
        block.decode(decoded);
        decoded
    }

    /// Runs `operation` on a block in the precision that was chosen for it.
    #[inline]
    pub(crate) fn run(
        &mut self,
        block: VectorBlock,
        precision: Precision,
        operation: &mut impl BlockOperation,
    ) {
        match precision {
            Precision::F32(lengths) => {
                self.run_f32(block, lengths, operation);
            }
            Precision::F64(method) => {
                let entries = self.decode_f64(block);
                block.to_exponents(entries);
                block.run_f64(entries, method, operation);
            }
        }
    }

    /// Runs `operation` on a whole block in `f32`.
    pub(crate) fn run_f32(
        &mut self,
        block: VectorBlock,
        lengths: SeriesLengths,
        operation: &mut impl BlockOperation,
    ) -> Magnitudes {
        let VectorBlock { vector, index, settings } = block;
        let is_unscaled = settings.temperature == 1.0;
        if is_unscaled {
            let stored = |dtype| vector.stored_block(index, dtype);
            if let Some(block) = stored(Dtype::BF16).and_then(|[base, tuned]| Bf16Block::new(base, tuned)) {
                return run_series(block, lengths, operation);
            }
            if let Some(block) = stored(Dtype::F16).and_then(|[base, tuned]| F16Block::new(base, tuned)) {
                return run_series(block, lengths, operation);
            }
            if let Some(block) = stored(Dtype::F32).and_then(|[base, tuned]| F32Block::new(base, tuned)) {
                return run_series(block, lengths, operation);
            }
            if let Some(block) = vector.f32_block(index) {
                return run_series(block, lengths, operation);
            }
        }
        let Buffers { f32s, f64s } = self.get();
        if is_unscaled && vector.fits_f32() {
            block.decode(f32s);
        } else {
            block.decode(f64s);
            block.to_exponents(f64s);
            for (rounded, number) in f32s.as_flattened_mut().iter_mut().zip(f64s.as_flattened()) {
                *rounded = *number as f32;
            }
        }
        run_series(DecodedBlock { base: &f32s[0], delta: &f32s[1] }, lengths, operation)
    }
}

#[inline]
fn run_series<E: BlockEntries<Number = f32>>(
    entries: E,
    lengths: SeriesLengths,
    operation: &mut impl BlockOperation,
) -> Magnitudes {
    match (lengths.degree, lengths.powers) {
        (4, _) => operation.f32_series::<E, 4, 3>(entries),
        (_, 3) => operation.f32_series::<E, 6, 3>(entries),
        (_, 4) => operation.f32_series::<E, 6, 4>(entries),
        (6, _) => operation.f32_series::<E, 6, 6>(entries),
        _ => operation.f32_series::<E, FULL, 6>(entries),
    }
}

/// One block of a weight vector, and the settings of its exponentials.
#[derive(Clone, Copy)]
pub(crate) struct VectorBlock<'a> {
    pub(crate) vector: &'a WeightVector<'a>,
    pub(crate) index: usize,
    pub(crate) settings: &'a SoftmaxSettings,
}

impl VectorBlock<'_> {
    #[inline]
    fn decode<R: Real>(self, [base, delta]: &mut [Block<R>; 2]) {
        self.settings.instructions.run_loops(
            #[inline(always)]
            || self.vector.decode_block(self.index, base, delta),
        );
    }

    /// Turns theta_B and theta_T - theta_B into the exponents x and y, and returns their magnitudes.
    pub(crate) fn to_exponents(self, [x, y]: &mut [Block<f64>; 2]) -> Magnitudes {
        let valid = self.vector.entries_of(self.index);
        let factor = 1.0 / self.settings.temperature;
        let offset = self.settings.offset.unwrap_or_default();
        let mut largest = Magnitudes::default();
        for (x, y) in x[..valid].iter_mut().zip(&mut y[..valid]) {
            *x = (*x - offset.base_max) * factor;
            *y = (*y - offset.shift) * factor - offset.center;
            largest.base = largest.base.max(x.abs());
            largest.delta = largest.delta.max(y.abs());
        }
        largest
    }

    /// Runs `operation` on the exponents of this block in `f64`.
    pub(crate) fn run_f64(
        self,
        [x, y]: &mut [Block<f64>; 2],
        method: F64Method,
        operation: &mut impl BlockOperation,
    ) {
        let valid = self.vector.entries_of(self.index);
        match method {
            F64Method::ClosedForm => operation.closed_form(x, y, valid),
            F64Method::OutOfRange => operation.out_of_range(),
            F64Method::ShortSeries | F64Method::LongSeries => {
                x.iter_mut().for_each(|x| *x = x.max(NEGLIGIBLE_EXPONENT));
                x[valid..].fill(NEGLIGIBLE_EXPONENT);
                y[valid..].fill(0.0);
                let entries = DecodedBlock { base: &*x, delta: &*y };
                if matches!(method, F64Method::ShortSeries) {
                    operation.f64_series::<11>(entries, valid);
                } else {
                    operation.f64_series::<23>(entries, valid);
                }
            }
        }
    }
}
