//! Sums a weight vector block by block.

use std::mem;

use super::block::{BLOCK, Block, BlockEntries, DecodedBlock, SEGMENT};
use super::block_operation::{BlockOperation, DecodeBuffers, VectorBlock};
use super::block_sums::{BlockSums, SumBlock, SumBuffers};
use super::divergence;
use super::precision::{F64Method, Precision, SeriesLengths, may_be_f32};
use super::segments::{BlockSegments, SegmentSums};
use super::series::{ClosedForm, FULL};
use super::softmax_sums::{SoftmaxSettings, SoftmaxSums};
use super::weight_change::{Magnitudes, MeasureChange};
use super::weight_vector::WeightVector;
use crate::simd::Instructions;

/// An entry that is NaN or infinite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NonFiniteEntry {
    /// Its index in the weight vector.
    pub entry: usize,
    /// Whether the tuned checkpoint holds it.
    pub is_tuned: bool,
}

/// The sums of one weight vector, which every head that reads the vector shares.
///
/// A kernel sums a block in lanes of its own precision; the sums of blocks are added in `f64`.
#[derive(Debug)]
pub struct VectorSums {
    pub(super) settings: SoftmaxSettings,
    sums: SoftmaxSums,
    pub(super) segments: SegmentSums,
    /// The cheapest precision that is right for each block. Its sums may have been computed by a longer series.
    pub(super) precisions: Vec<Precision>,
    /// The sums of the last block, and the memory of the kernel and the decoder.
    block: BlockSums,
    f32_buffers: Box<SumBuffers<f32>>,
    f64_buffers: Box<SumBuffers<f64>>,
    decode_buffers: DecodeBuffers,
}

impl VectorSums {
    /// Sums of no entries.
    pub fn new(temperature: f64, instructions: Instructions) -> Self {
        Self::with_settings(SoftmaxSettings { temperature, offset: None, instructions })
    }

    fn with_settings(settings: SoftmaxSettings) -> Self {
        Self {
            settings,
            sums: SoftmaxSums::default(),
            segments: SegmentSums::default(),
            precisions: Vec::new(),
            block: BlockSums::default(),
            f32_buffers: Box::default(),
            f64_buffers: Box::default(),
            decode_buffers: DecodeBuffers::default(),
        }
    }

    /// The sums of a whole vector.
    pub(super) fn of(vector: &WeightVector, settings: SoftmaxSettings) -> Result<Self, NonFiniteEntry> {
        let mut sums = Self::with_settings(settings);
        sums.add_up_to(vector.entries(), vector)?;
        Ok(sums)
    }

    /// Begins another weight vector.
    pub fn clear(&mut self) {
        self.sums = SoftmaxSums::default();
        self.segments.clear();
        self.precisions.clear();
    }

    /// Adds all whole blocks among the first `entries` entries of `vector` that were not added before.
    pub fn add_up_to(&mut self, entries: usize, vector: &WeightVector) -> Result<(), NonFiniteEntry> {
        let end = if entries == vector.entries() { vector.blocks() } else { entries / BLOCK };
        let (mut buffers, settings) = (mem::take(&mut self.decode_buffers), self.settings);
        let added = (self.precisions.len()..end).try_for_each(|block| {
            self.sums.entries += vector.entries_of(block);
            let precision =
                self.add_block(VectorBlock { vector, index: block, settings: &settings }, &mut buffers)?;
            self.precisions.push(precision);
            Ok(())
        });
        self.decode_buffers = buffers;
        added
    }

    /// The sums over all blocks added.
    pub(super) fn sums(&self) -> SoftmaxSums {
        let [u, c] = self.segments.totals();
        SoftmaxSums { u, c, ..self.sums.clone() }
    }

    /// Adds one block, and returns the cheapest precision that is right for it.
    #[inline]
    fn add_block(
        &mut self,
        block: VectorBlock,
        buffers: &mut DecodeBuffers,
    ) -> Result<Precision, NonFiniteEntry> {
        let previous = self.precisions.last().copied();
        if may_be_f32(block.vector, block.index, block.settings)
            && let Some(shortest) =
                SeriesLengths::choose(previous, |lengths| buffers.run_f32(block, lengths, self))
        {
            return Ok(Precision::F32(shortest));
        }
        self.add_block_in_f64(block, buffers)
    }

    #[cold]
    fn add_block_in_f64(
        &mut self,
        block: VectorBlock,
        buffers: &mut DecodeBuffers,
    ) -> Result<Precision, NonFiniteEntry> {
        let entries = buffers.decode_f64(block);
        let [base, delta] = &*entries;
        let mut numbers = base.iter().zip(delta);
        if let Some(place) = numbers.position(|(base, delta)| !(base.is_finite() && delta.is_finite())) {
            return Err(NonFiniteEntry {
                entry: block.index * BLOCK + place,
                is_tuned: base[place].is_finite(),
            });
        }
        let change = self.settings.instructions.run(MeasureChange(DecodedBlock { base, delta }));
        self.sums.change.merge(&change);
        let magnitudes = block.to_exponents(entries);
        let method = F64Method::choose(&magnitudes, self.settings.offset.is_some());
        block.run_f64(entries, method, self);
        Ok(Precision::F64(method))
    }

    /// Adds the block that a kernel has summed.
    #[inline(always)]
    fn add_summed_block(&mut self, powers: usize, valid: usize) {
        let block = &self.block;
        self.sums.cc += block.segments.cc;
        self.sums.uc += block.uc;
        self.sums.uu += block.segments.uu.iter().sum::<f64>();
        for (sum, moment) in self.sums.moments.iter_mut().zip(&block.moments).take(powers + 1) {
            *sum += moment;
        }
        self.segments.push(if valid < BLOCK { block.segments.ending_at(valid) } else { block.segments });
    }
}

impl BlockOperation for VectorSums {
    fn f32_series<E: BlockEntries<Number = f32>, const DEGREE: usize, const POWERS: usize>(
        &mut self,
        entries: E,
    ) -> Magnitudes {
        let Self { block, f32_buffers: buffers, .. } = self;
        self.settings.instructions.run(SumBlock::<E, DEGREE, POWERS> { entries, sums: block, buffers });
        let magnitudes = block.magnitudes;
        if SeriesLengths::new(DEGREE, POWERS).cover(&magnitudes) {
            self.sums.change.merge(&block.change.scaled(self.settings.temperature));
            self.sums.has_f32 = true;
            self.add_summed_block(POWERS, BLOCK);
        }
        magnitudes
    }

    fn f64_series<const POWERS: usize>(&mut self, entries: DecodedBlock<f64>, valid: usize) {
        let Self { block, f64_buffers: buffers, .. } = self;
        self.settings.instructions.run(SumBlock::<_, FULL, POWERS> { entries, sums: block, buffers });
        self.add_summed_block(POWERS, valid);
    }

    fn closed_form(&mut self, x: &Block<f64>, y: &Block<f64>, valid: usize) {
        let mut block = BlockSegments::default();
        for (place, (x, y)) in x[..valid].chunks(SEGMENT).zip(y[..valid].chunks(SEGMENT)).enumerate() {
            let (mut u_sum, mut c_sum) = (0.0, 0.0);
            for (x, y) in x.iter().zip(y) {
                let ClosedForm { base, tuned, u, c } = ClosedForm::of(*x, *y);
                u_sum += u;
                c_sum += c;
                block.u_area[place] += u_sum;
                block.c_area[place] += c_sum;
                block.uu[place] += u * u;
                block.cc += c * c;
                self.sums.uc += u * c;
                let divergences = divergence::of_entry(base, tuned, *y);
                self.sums.closed_form.kl += divergences.kl;
                self.sums.closed_form.js += divergences.js;
            }
            (block.u[place], block.c[place]) = (u_sum, c_sum);
            self.sums.uu += block.uu[place];
            self.sums.closed_form_u += u_sum;
            self.sums.closed_form_c += c_sum;
        }
        self.sums.cc += block.cc;
        self.segments.push(block);
        self.sums.exceeds_series = true;
    }

    fn out_of_range(&mut self) {
        self.sums.exceeds_series = true;
        self.segments.push(BlockSegments::default());
    }
}
