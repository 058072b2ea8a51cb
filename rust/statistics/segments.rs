//! The sums of each segment of a weight vector, and the pass of running differences through them.
//!
//! # How it works
//!
//! The Wasserstein score of a head follows from the sum of |D| over its entries, where D = U - rho C
//! ([symbols](super#symbols)). rho is known only when all entries are summed, so D takes a second pass. Where D keeps
//! its sign throughout a segment of T entries, that pass needs no entry of it: the sum of |D| is then
//!
//! |T D(before the segment) + sum of the running sums of u - rho (sum of the running sums of c)|.
//!
//! [`super::sign_bounds`] proves from the sums of most segments that D keeps its sign in them.

use super::block::{BLOCK, SEGMENT, SEGMENTS};
use super::sign_bounds::SegmentPath;
use crate::simd::Instructions;
use crate::simd::real::Real;

/// The sums of each segment of one block.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BlockSegments {
    /// The sum of u.
    pub(crate) u: [f64; SEGMENTS],
    /// The sum of c.
    pub(crate) c: [f64; SEGMENTS],
    /// The sum of the running sums of u.
    pub(crate) u_area: [f64; SEGMENTS],
    /// The sum of the running sums of c.
    pub(crate) c_area: [f64; SEGMENTS],
    /// The sum of u^2.
    pub(crate) uu: [f64; SEGMENTS],
    /// The sum of c^2 over the whole block.
    pub(crate) cc: f64,
}

impl BlockSegments {
    /// Corrects the sums of a block of which only `valid` entries exist. The running sums were also summed at the other
    /// entries, whose u and c are 0.
    pub(crate) fn ending_at(mut self, valid: usize) -> Self {
        let last = (valid - 1) / SEGMENT;
        let absent = ((last + 1) * SEGMENT - valid) as f64;
        self.u_area[last] -= absent * self.u[last];
        self.c_area[last] -= absent * self.c[last];
        self
    }
}

/// The sums of all segments of one weight vector.
#[derive(Debug, Default)]
pub(crate) struct SegmentSums {
    /// The sums of each block, in which u and c are running sums: their totals up to the end of each segment.
    blocks: Vec<BlockSegments>,
}

/// D of one head, block after block of its weight vectors.
#[derive(Clone, Debug, Default)]
pub(crate) struct RunningDifference {
    pub(crate) ratio: f64,
    /// U and C before the current weight vector.
    u: f64,
    c: f64,
    /// D before each segment of the current block, and after the block.
    pub(crate) before: [f64; SEGMENTS],
    after: f64,
    /// Bit i tells whether D may change its sign within segment i of the block.
    undecided: u8,
    /// Sums of |D|, whose total is that over all entries so far.
    areas: [f64; SEGMENTS],
}

impl RunningDifference {
    /// D before the first entry, given the ratio of the totals of u and c.
    pub(crate) fn new(ratio: f64) -> Self {
        Self { ratio, ..Self::default() }
    }

    /// The sum of |D| over all entries so far.
    pub(crate) fn area(&self) -> f64 {
        self.areas.iter().sum()
    }

    /// Whether D may change its sign within any segment of the block.
    pub(crate) fn has_undecided(&self) -> bool {
        self.undecided != 0
    }

    /// Whether D may change its sign within this segment of the block.
    #[inline(always)]
    pub(crate) fn is_undecided(&self, segment: usize) -> bool {
        self.undecided >> segment & 1 == 1
    }

    /// Passes through a block, whose u and c are running sums. `c_before` is the running sum of c before each of its
    /// segments, `c_norm` the norm of c, and `inside` the number of entries of each segment.
    #[inline(always)]
    fn pass(
        &mut self,
        block: &BlockSegments,
        c_before: &[f64; SEGMENTS],
        c_norm: f64,
        inside: &[f64; SEGMENTS],
    ) {
        let ratio = self.ratio;
        let mut after = [0.0; SEGMENTS];
        for (after, (u, c)) in after.iter_mut().zip(block.u.iter().zip(&block.c)) {
            *after = (self.u + u) - ratio * (self.c + c);
        }
        let before = shift_in(after, self.after);
        let (mut undecided, mut areas) = (0u8, self.areas);
        for place in 0..SEGMENTS {
            let area = inside[place] * before[place] + (block.u_area[place] - ratio * block.c_area[place]);
            let path = SegmentPath {
                before: before[place],
                after: after[place],
                mean: (area + (SEGMENT as f64 - inside[place]) * after[place]) / SEGMENT as f64,
                uu: block.uu[place],
                drift: ratio.abs() * (block.c[place] - c_before[place]),
                drift_norm: ratio.abs() * c_norm,
            };
            let keeps_sign = path.keeps_sign();
            undecided |= u8::from(!keeps_sign & (inside[place] > 0.0)) << place;
            areas[place] += if keeps_sign { area.abs() } else { 0.0 };
        }
        (self.before, self.after, self.undecided, self.areas) =
            (before, after[SEGMENTS - 1], undecided, areas);
    }

    /// Adds sums of |D|.
    #[inline(always)]
    pub(crate) fn add_areas<R: Real, const COUNT: usize>(&mut self, areas: [R; COUNT]) {
        for areas in areas.chunks(SEGMENTS) {
            for (sum, area) in self.areas.iter_mut().zip(areas) {
                *sum += area.to_f64();
            }
        }
    }
}

impl SegmentSums {
    pub(crate) fn clear(&mut self) {
        self.blocks.clear();
    }

    /// Adds the next block.
    #[inline]
    pub(crate) fn push(&mut self, mut block: BlockSegments) {
        let [mut u, mut c] = self.totals();
        for (u_total, c_total) in block.u.iter_mut().zip(&mut block.c) {
            u += *u_total;
            c += *c_total;
            (*u_total, *c_total) = (u, c);
        }
        self.blocks.push(block);
    }

    /// The sums of u and c over all blocks.
    pub(crate) fn totals(&self) -> [f64; 2] {
        // Segments that a block lacks add nothing.
        self.blocks.last().map_or([0.0; 2], |block| [block.u[SEGMENTS - 1], block.c[SEGMENTS - 1]])
    }

    /// Passes heads through a block of `valid` entries. Adds to each head the sum of |D| over the segments in which its
    /// D keeps its sign, and marks the other segments undecided.
    pub(crate) fn pass_block(
        &self,
        index: usize,
        valid: usize,
        heads: &mut [RunningDifference],
        instructions: Instructions,
    ) {
        let c_before = index.checked_sub(1).map_or(0.0, |before| self.blocks[before].c[SEGMENTS - 1]);
        instructions.run_loops(
            #[inline(always)]
            || {
                let mut inside = [SEGMENT as f64; SEGMENTS];
                if valid < BLOCK {
                    for (place, inside) in inside.iter_mut().enumerate() {
                        *inside = valid.saturating_sub(place * SEGMENT).min(SEGMENT) as f64;
                    }
                }
                // A copy, which the compiler knows not to alias the heads.
                let block = self.blocks[index];
                let c_before = shift_in(block.c, c_before);
                let c_norm = block.cc.sqrt();
                for head in heads {
                    head.pass(&block, &c_before, c_norm, &inside);
                }
            },
        );
    }

    /// Ends the pass through this weight vector: adds its totals to U and C of every head.
    pub(crate) fn leave(&self, heads: &mut [RunningDifference]) {
        let [u, c] = self.totals();
        for head in heads {
            head.u += u;
            head.c += c;
        }
    }
}

/// The numbers moved one place on: `first`, then all but the last.
#[inline(always)]
fn shift_in(numbers: [f64; SEGMENTS], first: f64) -> [f64; SEGMENTS] {
    let mut shifted = [first; SEGMENTS];
    shifted[1..].copy_from_slice(&numbers[..SEGMENTS - 1]);
    shifted
}
