//! What a part adds to the running sums of u and c, [`SEGMENT`] entries at a time.

use super::weight_vector::{BLOCK, SEGMENT};
use crate::simd::real::Real;
use crate::simd::{Instructions, Kernel, Vectors};

/// Segments of one block.
pub(crate) const PER_BLOCK: usize = BLOCK / SEGMENT;

/// What the segments of one block add to the running sums: enough to integrate them over a segment without its
/// entries where the sign of their difference does not change.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BlockSegments {
    /// The sum of u.
    pub(crate) u: [f64; PER_BLOCK],
    /// The sum of c.
    pub(crate) c: [f64; PER_BLOCK],
    /// The sum of the running sums of u.
    pub(crate) u_area: [f64; PER_BLOCK],
    /// The sum of the running sums of c.
    pub(crate) c_area: [f64; PER_BLOCK],
    /// The sum of u^2.
    pub(crate) uu: [f64; PER_BLOCK],
    /// The sum of c^2 over all of the block.
    pub(crate) cc: f64,
}

impl BlockSegments {
    /// The same where only `valid` entries exist, and the running sums went on over others, which are 0.
    pub(crate) fn ending_at(mut self, valid: usize) -> Self {
        let last = (valid - 1) / SEGMENT;
        let absent = ((last + 1) * SEGMENT - valid) as f64;
        self.u_area[last] -= absent * self.u[last];
        self.c_area[last] -= absent * self.c[last];
        self
    }
}

/// The segments of one part.
#[derive(Debug, Default)]
pub(crate) struct Segments {
    /// Those of each block. Here u and c are running sums: what they have come to at the end of each segment.
    blocks: Vec<BlockSegments>,
}

/// A head on its way through the parts of its weight vector: D = U - ratio C, the difference of its running sums.
#[derive(Clone, Debug)]
pub(crate) struct Running {
    pub(crate) ratio: f64,
    /// U and C before the part that it goes through.
    u: f64,
    c: f64,
    /// D before each segment of a block, and after the block.
    before: [f64; PER_BLOCK],
    after: f64,
    /// Bit by bit, the segments of the block in which D may change its sign.
    open: u8,
    /// Sums of |D|, which together go over all entries so far.
    areas: [f64; PER_BLOCK],
}

impl Running {
    /// Before the first part. `ratio` is that of the totals of u and c.
    pub(crate) fn new(ratio: f64) -> Self {
        Self { ratio, u: 0.0, c: 0.0, before: [0.0; PER_BLOCK], after: 0.0, open: 0, areas: [0.0; PER_BLOCK] }
    }

    /// The sum of |D| over all entries so far.
    pub(crate) fn area(&self) -> f64 {
        self.areas.iter().sum()
    }

    /// Whether D may change its sign within any segment of the block.
    pub(crate) fn is_open(&self) -> bool {
        self.open != 0
    }

    /// Whether it may within this one.
    #[inline(always)]
    pub(crate) fn is_open_in(&self, segment: usize) -> bool {
        self.open >> segment & 1 == 1
    }

    /// D before a segment of the block.
    #[inline(always)]
    pub(crate) fn before(&self, segment: usize) -> f64 {
        self.before[segment]
    }

    /// Adds areas.
    #[inline(always)]
    pub(crate) fn add<R: Real, const COUNT: usize>(&mut self, areas: [R; COUNT]) {
        for areas in areas.chunks(PER_BLOCK) {
            for (sum, area) in self.areas.iter_mut().zip(areas) {
                *sum += area.wide();
            }
        }
    }
}

impl Segments {
    pub(crate) fn clear(&mut self) {
        self.blocks.clear();
    }

    /// Adds those of the next block.
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

    /// The sums of u and c.
    pub(crate) fn totals(&self) -> [f64; 2] {
        // What a block lacks of its segments adds nothing.
        self.blocks.last().map_or([0.0; 2], |block| [block.u[PER_BLOCK - 1], block.c[PER_BLOCK - 1]])
    }

    /// Takes heads through a block of `valid` entries: adds the area of every segment in which D keeps its sign, and
    /// marks the others open.
    pub(crate) fn pass(&self, block: usize, valid: usize, heads: &mut [Running], instructions: Instructions) {
        let c_before = block.checked_sub(1).map_or(0.0, |before| self.blocks[before].c[PER_BLOCK - 1]);
        instructions.run(Pass { block: &self.blocks[block], c_before, valid, heads });
    }

    /// Takes heads on to the next part.
    pub(crate) fn leave(&self, heads: &mut [Running]) {
        let [u, c] = self.totals();
        for head in heads {
            head.u += u;
            head.c += c;
        }
    }
}

/// What tells whether a running difference D can change its sign within a segment.
#[derive(Clone, Copy, Debug)]
struct Course {
    /// D before the first entry and after the last.
    before: f64,
    after: f64,
    /// The mean of D after each entry; where entries are absent, D stays as it is.
    mean: f64,
    /// The sum of u^2.
    uu: f64,
    /// The sum of |ratio| c.
    drift: f64,
    /// At least the root of the sum of (ratio c)^2: that over the whole block.
    drift_norm: f64,
}

impl Course {
    /// Whether D cannot change its sign. The steps of D are u - ratio c.
    ///
    /// By Cauchy and Schwarz the way of D is no longer than sqrt(T uu) + |ratio| C over T entries, and |a| + |b| are
    /// needed to get from a to 0 and on to b.
    ///
    /// As a path D(t) that goes straight from entry to entry, it has the energy E = integral of D'^2, the sum of the
    /// squares of its steps, whose root is no larger than sqrt(uu) + `drift_norm`; and one that goes from a to 0 in a time t with the area A at least that of a parabola,
    /// a^2 / t + 12 (A - a t / 2)^2 / t^3. If D reaches 0 after a share s of T, with a, b >= 0 at its ends, the mean
    /// m, and q = s (1 - s), then
    ///
    /// E T >= a^2 / s + b^2 / (1 - s) + 12 (m - a s / 2 - b (1 - s) / 2)^2 / (s^3 + (1 - s)^3)
    ///     >= min(a, b)^2 / q + 12 (m - max(a, b) / 2)^2 / (1 - 3 q)
    ///     >= 3 (min(a, b) + 2 m - max(a, b))^2,
    ///
    /// for the best division of the area and the best q: who stays away from 0 for long has no time to go there.
    #[inline(always)]
    fn keeps_sign(self) -> bool {
        let Self { before, after, mean, uu, drift, drift_norm } = self;
        const T: f64 = SEGMENT as f64;
        let is_farther = |way: f64| (way > 0.0) & (T * uu * (MARGIN * MARGIN) <= way * way);
        // Along the path half of the step after each entry is in the mean.
        let mean = mean - (after - before) / (2.0 * T);
        let far = 3f64.sqrt() * (2.0 * mean.abs() - (after - before).abs());
        let is_on_one_side = ((before > 0.0) == (after > 0.0)) & ((before > 0.0) == (mean > 0.0));
        is_farther(before.abs() + after.abs() - MARGIN * drift)
            | (is_on_one_side & is_farther(far - MARGIN * T.sqrt() * drift_norm))
    }
}

/// Covers the rounding of sums in `f32`.
const MARGIN: f64 = 1.0 + 1e-5;

struct Pass<'a> {
    block: &'a BlockSegments,
    /// The sum of c over the blocks before.
    c_before: f64,
    valid: usize,
    heads: &'a mut [Running],
}

impl Kernel for Pass<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Vectors>(self, _: S) {
        let Self { block, c_before, valid, heads } = self;
        let mut inside = [SEGMENT as f64; PER_BLOCK];
        if valid < BLOCK {
            for (place, inside) in inside.iter_mut().enumerate() {
                *inside = valid.saturating_sub(place * SEGMENT).min(SEGMENT) as f64;
            }
        }
        // Of its own, so that it is known not to change while heads do.
        let block = *block;
        let c_before = moved_up(block.c, c_before);
        let c_norm = block.cc.sqrt();
        for head in heads {
            let ratio = head.ratio;
            let mut after = [0.0; PER_BLOCK];
            for (after, (u, c)) in after.iter_mut().zip(block.u.iter().zip(&block.c)) {
                *after = (head.u + u) - ratio * (head.c + c);
            }
            let before = moved_up(after, head.after);
            let (mut open, mut areas) = (0u8, head.areas);
            for place in 0..PER_BLOCK {
                let area =
                    inside[place] * before[place] + (block.u_area[place] - ratio * block.c_area[place]);
                let course = Course {
                    before: before[place],
                    after: after[place],
                    mean: (area + (SEGMENT as f64 - inside[place]) * after[place]) / SEGMENT as f64,
                    uu: block.uu[place],
                    drift: ratio.abs() * (block.c[place] - c_before[place]),
                    drift_norm: ratio.abs() * c_norm,
                };
                let keeps_sign = course.keeps_sign();
                open |= u8::from(!keeps_sign & (inside[place] > 0.0)) << place;
                areas[place] += if keeps_sign { area.abs() } else { 0.0 };
            }
            (head.before, head.after, head.open, head.areas) = (before, after[PER_BLOCK - 1], open, areas);
        }
    }
}

/// What comes before each number, if `first` comes before all.
#[inline(always)]
fn moved_up(numbers: [f64; PER_BLOCK], first: f64) -> [f64; PER_BLOCK] {
    let mut moved = [first; PER_BLOCK];
    moved[1..].copy_from_slice(&numbers[..PER_BLOCK - 1]);
    moved
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The course of D through a segment, which begins at `before` and takes these steps, of which the normalisers
    /// have these parts.
    fn course(before: f64, steps: &[f64], drifts: &[f64]) -> (Course, bool) {
        let (mut d, mut sum, mut changes) = (before, 0.0, false);
        for step in steps {
            d += step;
            sum += d;
            changes |= d * before < 0.0;
        }
        let squares =
            |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|number| number * number).sum::<f64>();
        let course = Course {
            before,
            after: d,
            mean: sum / steps.len() as f64,
            uu: squares(&mut steps.iter().zip(drifts).map(|(step, drift)| step + drift)),
            drift: drifts.iter().sum(),
            drift_norm: squares(&mut drifts.iter().copied()).sqrt(),
        };
        (course, changes)
    }

    /// D on a parabola from `from` to `to`, at a share of its time.
    fn parabola(from: f64, to: f64, bulge: f64, share: f64) -> f64 {
        from + (to - from) * share + bulge * share * (1.0 - share)
    }

    proptest! {
        /// Of all ways below 0 and back, parabolas need the least energy; those that go far from 0 before and after
        /// have a large mean as well.
        #[test]
        fn a_course_that_goes_below_0_is_never_said_to_keep_its_sign(
            [before, after] in prop::array::uniform2(0.01f64..1.0),
            bulges in prop::array::uniform2(-1f64..4.0),
            share in 0.01f64..0.99,
            depth in 1e-6f64..0.1,
            noise in prop::collection::vec(-1f64..1.0, SEGMENT),
            loudness in prop::sample::select(vec![0.0, 1e-3, 0.1]),
            drifts in prop::collection::vec(0.5f64..1.0, SEGMENT),
            drift in prop::sample::select(vec![0.0, 1e-4, 1e-2]),
        ) {
            let drifts: Vec<f64> = drifts.iter().map(|part| part * drift).collect();
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
                let (course, changes) = course(sign * before, &steps, &drifts);
                prop_assert!(!(changes && course.keeps_sign()), "{course:?}");
            }
        }

        /// Where no entry has changed, only the normalisers make a course, straight through 0.
        #[test]
        fn a_drift_through_0_changes_the_sign(scale in -30f64..0.0, share in 0f64..1.0) {
            let drift = scale.exp();
            let (before, after) = (share * drift, share * drift - drift);
            let drift_norm = drift / (SEGMENT as f64).sqrt();
            let course = Course { before, after, mean: (before + after) / 2.0, uu: 0.0, drift, drift_norm };
            prop_assert!(!course.keeps_sign(), "{course:?}");
        }

        /// One that stays away from 0 keeps its sign, though its steps would carry it there if all went the same way.
        #[test]
        fn a_course_that_stays_away_from_0_keeps_its_sign(
            swings in prop::collection::vec(0.8f64..1.0, SEGMENT / 2),
        ) {
            let steps: Vec<f64> = swings.iter().flat_map(|swing| [*swing, -swing]).collect();
            for before in [0.3 * SEGMENT as f64, -0.3 * SEGMENT as f64] {
                let (course, _) = course(before, &steps, &[0.0; SEGMENT]);
                prop_assert!(course.keeps_sign(), "{course:?}");
            }
        }
    }
}
