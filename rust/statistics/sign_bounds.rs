//! The sums of each segment of a weight vector, and bounds that tell where a running difference keeps its sign.
//!
//! # How it works
//!
//! The Wasserstein score of a head is the sum over its entries of |D|, D = U - rho C, where U and C are the running sums
//! of u and c over its weight vector and rho the ratio of their totals. rho is known only when all entries are summed, so
//! D takes a second pass over the weights. Where D keeps its sign throughout a segment of T entries, that pass needs no
//! entry of it: the sum of |D| is then
//!
//! |T D(before the segment) + sum of the running sums of u - rho (sum of the running sums of c)|.
//!
//! [`SegmentPath::keeps_sign`] proves it for most segments from their sums alone.

use super::block::{BLOCK, SEGMENT, SEGMENTS};
use crate::simd::real::Real;
use crate::simd::{Instructions, Kernel, Vectors};

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
    /// Corrects the sums of a block of which only `valid` entries exist: the running sums went on over the others, which
    /// are 0.
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

/// D = U - ratio C of one head, block after block of its weight vectors.
#[derive(Clone, Debug)]
pub(crate) struct RunningDifference {
    pub(crate) ratio: f64,
    /// U and C before the current weight vector.
    u: f64,
    c: f64,
    /// D before each segment of the current block, and after the block.
    before: [f64; SEGMENTS],
    after: f64,
    /// Bit i tells whether D may change its sign within segment i of the block.
    undecided: u8,
    /// Sums of |D|, whose total is that over all entries so far.
    areas: [f64; SEGMENTS],
}

impl RunningDifference {
    /// D before the first entry, given the ratio of the totals of u and c.
    pub(crate) fn new(ratio: f64) -> Self {
        Self {
            ratio,
            u: 0.0,
            c: 0.0,
            before: [0.0; SEGMENTS],
            after: 0.0,
            undecided: 0,
            areas: [0.0; SEGMENTS],
        }
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

    /// D before a segment of the block.
    #[inline(always)]
    pub(crate) fn before(&self, segment: usize) -> f64 {
        self.before[segment]
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
        for (of_u, of_c) in block.u.iter_mut().zip(&mut block.c) {
            u += *of_u;
            c += *of_c;
            (*of_u, *of_c) = (u, c);
        }
        self.blocks.push(block);
    }

    /// The sums of u and c over all blocks.
    pub(crate) fn totals(&self) -> [f64; 2] {
        // Segments that a block lacks add nothing.
        self.blocks.last().map_or([0.0; 2], |block| [block.u[SEGMENTS - 1], block.c[SEGMENTS - 1]])
    }

    /// Takes heads through a block of `valid` entries: adds the sum of |D| over every segment in which D keeps its sign,
    /// and marks the others undecided.
    pub(crate) fn pass_block(
        &self,
        block: usize,
        valid: usize,
        heads: &mut [RunningDifference],
        instructions: Instructions,
    ) {
        let c_before = block.checked_sub(1).map_or(0.0, |before| self.blocks[before].c[SEGMENTS - 1]);
        instructions.run(PassBlock { block: &self.blocks[block], c_before, valid, heads });
    }

    /// Takes heads on to the next weight vector.
    pub(crate) fn leave(&self, heads: &mut [RunningDifference]) {
        let [u, c] = self.totals();
        for head in heads {
            head.u += u;
            head.c += c;
        }
    }
}

/// The sums of D within one segment.
#[derive(Clone, Copy, Debug)]
struct SegmentPath {
    /// D before the first entry and after the last.
    before: f64,
    after: f64,
    /// The mean of D after each entry; where entries are absent, D is constant.
    mean: f64,
    /// The sum of u^2.
    uu: f64,
    /// The sum of |ratio| c.
    drift: f64,
    /// At least the root of the sum of (ratio c)^2: that over the whole block.
    drift_norm: f64,
}

impl SegmentPath {
    /// Whether D provably keeps its sign. The steps of D are u - ratio c.
    ///
    /// First bound: by Cauchy and Schwarz the path of D over T entries is no longer than sqrt(T uu) + |ratio| C, and a path
    /// from a to 0 and on to b is at least |a| + |b| long.
    ///
    /// Second bound: let D(t) be linear between the entries. Its energy E = integral of D'^2 is the sum of the squares of
    /// its steps, whose root is at most sqrt(uu) + `drift_norm`. A path from a to 0 in time t with area A has at least the
    /// energy of a parabola, a^2 / t + 12 (A - a t / 2)^2 / t^3. If D reaches 0 after a share s of T, with a, b >= 0 at its
    /// ends, mean m, and q = s (1 - s), then
    ///
    /// E T >= a^2 / s + b^2 / (1 - s) + 12 (m - a s / 2 - b (1 - s) / 2)^2 / (s^3 + (1 - s)^3)
    ///     >= min(a, b)^2 / q + 12 (m - max(a, b) / 2)^2 / (1 - 3 q)
    ///     >= 3 (min(a, b) + 2 m - max(a, b))^2,
    ///
    /// for the best division of the area and the best q: a path with a large mean has no time left to reach 0.
    #[inline(always)]
    fn keeps_sign(self) -> bool {
        let Self { before, after, mean, uu, drift, drift_norm } = self;
        const T: f64 = SEGMENT as f64;
        let exceeds_steps = |length: f64| (length > 0.0) & (T * uu * (MARGIN * MARGIN) <= length * length);
        // The mean along the path contains half of the step after each entry.
        let mean = mean - (after - before) / (2.0 * T);
        let far = 3f64.sqrt() * (2.0 * mean.abs() - (after - before).abs());
        let has_one_sign = ((before > 0.0) == (after > 0.0)) & ((before > 0.0) == (mean > 0.0));
        exceeds_steps(before.abs() + after.abs() - MARGIN * drift)
            | (has_one_sign & exceeds_steps(far - MARGIN * T.sqrt() * drift_norm))
    }
}

/// A factor that covers the rounding of sums in `f32`.
const MARGIN: f64 = 1.0 + 1e-5;

struct PassBlock<'a> {
    block: &'a BlockSegments,
    /// The sum of c over the blocks before.
    c_before: f64,
    valid: usize,
    heads: &'a mut [RunningDifference],
}

impl Kernel for PassBlock<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Vectors>(self, _: S) {
        let Self { block, c_before, valid, heads } = self;
        let mut inside = [SEGMENT as f64; SEGMENTS];
        if valid < BLOCK {
            for (place, inside) in inside.iter_mut().enumerate() {
                *inside = valid.saturating_sub(place * SEGMENT).min(SEGMENT) as f64;
            }
        }
        // The copy cannot alias the heads.
        let block = *block;
        let c_before = shift_in(block.c, c_before);
        let c_norm = block.cc.sqrt();
        for head in heads {
            let ratio = head.ratio;
            let mut after = [0.0; SEGMENTS];
            for (after, (u, c)) in after.iter_mut().zip(block.u.iter().zip(&block.c)) {
                *after = (head.u + u) - ratio * (head.c + c);
            }
            let before = shift_in(after, head.after);
            let (mut undecided, mut areas) = (0u8, head.areas);
            for place in 0..SEGMENTS {
                let area =
                    inside[place] * before[place] + (block.u_area[place] - ratio * block.c_area[place]);
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
            (head.before, head.after, head.undecided, head.areas) =
                (before, after[SEGMENTS - 1], undecided, areas);
        }
    }
}

/// The number before each number, which is `first` for the first.
#[inline(always)]
fn shift_in(numbers: [f64; SEGMENTS], first: f64) -> [f64; SEGMENTS] {
    let mut shifted = [first; SEGMENTS];
    shifted[1..].copy_from_slice(&numbers[..SEGMENTS - 1]);
    shifted
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The path of D from `before` by these steps, of which `drifts` come from ratio c, and whether its sign changes.
    fn path(before: f64, steps: &[f64], drifts: &[f64]) -> (SegmentPath, bool) {
        let (mut d, mut sum, mut changes) = (before, 0.0, false);
        for step in steps {
            d += step;
            sum += d;
            changes |= d * before < 0.0;
        }
        let squares =
            |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|number| number * number).sum::<f64>();
        let path = SegmentPath {
            before,
            after: d,
            mean: sum / steps.len() as f64,
            uu: squares(&mut steps.iter().zip(drifts).map(|(step, drift)| step + drift)),
            drift: drifts.iter().sum(),
            drift_norm: squares(&mut drifts.iter().copied()).sqrt(),
        };
        (path, changes)
    }

    /// A parabola from `from` to `to`, at a share of its time.
    fn parabola(from: f64, to: f64, bulge: f64, share: f64) -> f64 {
        from + (to - from) * share + bulge * share * (1.0 - share)
    }

    proptest! {
        /// Of all paths below 0 and back, parabolas need the least energy; those that go far from 0 before and after
        /// have a large mean as well.
        #[test]
        fn a_path_below_0_is_never_said_to_keep_its_sign(
            [before, after] in prop::array::uniform2(0.01f64..1.0),
            bulges in prop::array::uniform2(-1f64..4.0),
            share in 0.01f64..0.99,
            depth in 1e-6f64..0.1,
            noise in prop::collection::vec(-1f64..1.0, SEGMENT),
            loudness in prop::sample::select(vec![0.0, 1e-3, 0.1]),
            drifts in prop::collection::vec(0.5f64..1.0, SEGMENT),
            drift in prop::sample::select(vec![0.0, 1e-4, 1e-2]),
        ) {
            let drifts: Vec<f64> = drifts.iter().map(|share| share * drift).collect();
            let at = |time: f64| match time / share {
                to_lowest if to_lowest < 1.0 => parabola(before, -depth, bulges[0], to_lowest),
                _ => parabola(-depth, after, bulges[1], (time - share) / (1.0 - share)),
            };
            let place = |entry: usize| entry as f64 / SEGMENT as f64;
            let steps: Vec<f64> = (0..SEGMENT)
                .map(|entry| at(place(entry + 1)) - at(place(entry)) + loudness * noise[entry])
                .collect();
            for sign in [1.0, -1.0] {
                let steps: Vec<f64> = steps.iter().map(|step| sign * step).collect();
                let (path, changes) = path(sign * before, &steps, &drifts);
                prop_assert!(!(changes && path.keeps_sign()), "{path:?}");
            }
        }

        /// Where no entry has changed, only ratio c moves D, straight through 0.
        #[test]
        fn a_drift_through_0_changes_the_sign(scale in -30f64..0.0, share in 0f64..1.0) {
            let drift = scale.exp();
            let (before, after) = (share * drift, share * drift - drift);
            let drift_norm = drift / (SEGMENT as f64).sqrt();
            let path = SegmentPath { before, after, mean: (before + after) / 2.0, uu: 0.0, drift, drift_norm };
            prop_assert!(!path.keeps_sign(), "{path:?}");
        }

        /// The steps would reach 0 if all had the same sign.
        #[test]
        fn a_path_that_stays_away_from_0_keeps_its_sign(
            swings in prop::collection::vec(0.8f64..1.0, SEGMENT / 2),
        ) {
            let steps: Vec<f64> = swings.iter().flat_map(|swing| [*swing, -swing]).collect();
            for before in [0.3 * SEGMENT as f64, -0.3 * SEGMENT as f64] {
                let (path, _) = path(before, &steps, &[0.0; SEGMENT]);
                prop_assert!(path.keeps_sign(), "{path:?}");
            }
        }
    }
}
