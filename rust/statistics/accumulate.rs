//! Sums a part block by block.

use std::ops::Range;

use super::block::{BlockSums, Memory, SumBlock};
use super::displacement::{Displacement, Extent};
use super::divergence;
use super::precision::{self, Reach, Scratch, Visitor, Way};
use super::sign_bounds::{BlockSegments, Segments};
use super::softmax_sums::{NonFiniteEntry, Scaling, Sums};
use super::weight_vector::{BLOCK, Block, Pairs, SEGMENT, WeightVector};
use crate::simd::real::Real;

/// The sums of one part as they grow, and its segments.
///
/// A kernel sums a block in lanes of its own width; what the block comes to joins sums in `f64`.
#[derive(Debug)]
pub(crate) struct Accumulator {
    scaling: Scaling,
    sums: Sums,
    segments: Segments,
    /// The way in which each block was computed.
    ways: Vec<Way>,
    /// What the last block came to, and where it was added up: memory for the next.
    block: BlockSums,
    memory: Box<Memory>,
}

impl Accumulator {
    pub(crate) fn new(scaling: Scaling) -> Self {
        Self {
            scaling,
            sums: Sums::default(),
            segments: Segments::default(),
            ways: Vec::new(),
            block: BlockSums::default(),
            memory: Box::default(),
        }
    }

    /// Begins another part, with the memory of the last.
    pub(crate) fn clear(&mut self) {
        self.sums = Sums::default();
        self.segments.clear();
        self.ways.clear();
    }

    /// Adds blocks of `part`, which follow those added before.
    pub(crate) fn add(
        &mut self,
        part: &WeightVector,
        blocks: Range<usize>,
        scratch: &mut Scratch,
    ) -> Result<(), NonFiniteEntry> {
        let scaling = self.scaling;
        for block in blocks {
            self.sums.entries += part.entries_of(block);
            let expected = self.ways.last().copied();
            let way = precision::visit(part, block, &scaling, expected, scratch, self)?;
            self.ways.push(way);
        }
        Ok(())
    }

    /// Adds how far the weights of a block have moved.
    pub(crate) fn add_displacement(&mut self, displacement: &Displacement) {
        self.sums.displacement.merge(displacement);
    }

    /// What turns theta into the arguments of the exponentials.
    pub(crate) fn scaling(&self) -> &Scaling {
        &self.scaling
    }

    /// The segments of all blocks added.
    pub(crate) fn segments(&self) -> &Segments {
        &self.segments
    }

    /// The way in which each block was computed.
    pub(crate) fn ways(&self) -> &[Way] {
        &self.ways
    }

    /// The sums over all blocks added.
    pub(crate) fn sums(&self) -> Sums {
        let [u, c] = self.segments.totals();
        Sums { u, c, ..self.sums.clone() }
    }
}

impl Visitor for Accumulator {
    fn series<R: Real, P: Pairs<R>, const X: usize, const K: usize>(
        &mut self,
        pairs: P,
        valid: usize,
    ) -> Extent {
        let block = &mut self.block;
        let waiting = R::waiting(&mut self.memory);
        self.scaling.instructions.run(SumBlock::<R, P, X, K> { pairs, sums: block, waiting });
        if R::IS_NARROW {
            if !Reach::new(X, K).covers(&block.extent) {
                return block.extent;
            }
            self.sums.displacement.merge(&block.displacement.scaled(self.scaling.temperature));
            self.sums.has_narrow = true;
        }
        self.sums.cc += block.segments.cc;
        self.sums.uc += block.uc;
        self.sums.uu += block.segments.uu.iter().sum::<f64>();
        for (sum, moment) in self.sums.moments.iter_mut().zip(&block.moments).take(K + 1) {
            *sum += moment;
        }
        self.segments.push(if valid < BLOCK { block.segments.ending_at(valid) } else { block.segments });
        block.extent
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
                self.sums.far.kl += divergences.kl;
                self.sums.far.js += divergences.js;
            }
            (block.u[place], block.c[place]) = (u_sum, c_sum);
            self.sums.uu += block.uu[place];
            self.sums.far_u += u_sum;
            self.sums.far_c += c_sum;
        }
        self.sums.cc += block.cc;
        self.segments.push(block);
        self.sums.has_far = true;
    }

    fn out_of_reach(&mut self) {
        self.sums.has_far = true;
        self.segments.push(BlockSegments::default());
    }
}

/// One entry, where nothing is bounded.
pub(crate) struct ClosedForm {
    /// e^theta_B.
    base: f64,
    /// e^theta_T.
    tuned: f64,
    pub(crate) u: f64,
    pub(crate) c: f64,
}

impl ClosedForm {
    pub(crate) fn of(x: f64, y: f64) -> Self {
        let (base, tuned) = (x.exp(), (x + y).exp());
        let u = if y.abs() < 1.0 { base * y.exp_m1() } else { tuned - base };
        Self { base, tuned, u, c: 0.5 * (base + tuned) }
    }
}
