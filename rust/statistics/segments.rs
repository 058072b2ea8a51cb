//! What a part adds to the running sums of u and c, [`SEGMENT`] entries at a time.

use super::part::{BLOCK, SEGMENT};
use crate::vector::{Instructions, Kernel, Vectors};

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

/// The running sums of u and c at one place, and the ratio of their totals.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Running {
    pub(crate) u: f64,
    pub(crate) c: f64,
    pub(crate) ratio: f64,
}

/// A segment in which U - ratio C may change its sign.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpenSegment {
    /// Its block.
    pub(crate) block: usize,
    /// Its first entry in the block.
    pub(crate) first: usize,
    /// U - ratio C before that.
    pub(crate) before: f64,
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

    /// The sum of |U - ratio C| over the entries of the segments in which its sign cannot change; the other
    /// segments are left in `open`. `start` is what the parts before have summed up to, `entries` how many
    /// there are in this one.
    pub(crate) fn area(
        &self,
        start: Running,
        entries: usize,
        open: &mut Vec<OpenSegment>,
        instructions: Instructions,
    ) -> f64 {
        instructions.run(Area { segments: self, start, entries, open })
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
    c: f64,
}

impl Course {
    /// Whether D cannot change its sign. The steps of D are u - ratio c.
    ///
    /// By Cauchy and Schwarz the way of D is no longer than sqrt(T uu) + |ratio| C over T entries, and |a| + |b| are
    /// needed to get from a to 0 and on to b.
    ///
    /// As a path D(t) that goes straight from entry to entry, it has the energy E = integral of D'^2, the sum of the
    /// squares of its steps, and one that goes from a to 0 in a time t with the area A at least that of a parabola,
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
        let Self { before, after, mean, uu, c } = self;
        const T: f64 = SEGMENT as f64;
        let c = c * MARGIN;
        let is_farther = |way: f64| (way > 0.0) & (T * uu * (MARGIN * MARGIN) <= way * way);
        // Along the path half of the step after each entry is in the mean.
        let mean = mean - (after - before) / (2.0 * T);
        let far = 3f64.sqrt() * (2.0 * mean.abs() - (after - before).abs());
        let is_on_one_side = ((before > 0.0) == (after > 0.0)) & ((before > 0.0) == (mean > 0.0));
        is_farther(before.abs() + after.abs() - c) | (is_on_one_side & is_farther(far - T.sqrt() * c))
    }
}

struct Area<'a> {
    segments: &'a Segments,
    start: Running,
    entries: usize,
    open: &'a mut Vec<OpenSegment>,
}

/// Covers the rounding of sums in `f32`.
const MARGIN: f64 = 1.0 + 1e-5;

impl Kernel for Area<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<S: Vectors>(self, _: S) -> f64 {
        let Self { segments, start, entries, open } = self;
        let Running { u: u_start, c: c_start, ratio } = start;
        open.clear();
        let mut areas = [0.0; PER_BLOCK];
        let mut last = [u_start - ratio * c_start, 0.0];
        for (index, block) in segments.blocks.iter().enumerate() {
            let mut after = [0.0; PER_BLOCK];
            for (after, (u, c)) in after.iter_mut().zip(block.u.iter().zip(&block.c)) {
                *after = (u_start + u) - ratio * (c_start + c);
            }
            let (before, c_before) = (moved_up(after, last[0]), moved_up(block.c, last[1]));
            last = [after[PER_BLOCK - 1], block.c[PER_BLOCK - 1]];
            let valid = (entries - index * BLOCK).min(BLOCK);
            let mut inside = [SEGMENT as f64; PER_BLOCK];
            if valid < BLOCK {
                for (place, inside) in inside.iter_mut().enumerate() {
                    *inside = valid.saturating_sub(place * SEGMENT).min(SEGMENT) as f64;
                }
            }
            let mut is_open = 0u8;
            for place in 0..PER_BLOCK {
                let area =
                    inside[place] * before[place] + (block.u_area[place] - ratio * block.c_area[place]);
                let course = Course {
                    before: before[place],
                    after: after[place],
                    mean: (area + (SEGMENT as f64 - inside[place]) * after[place]) / SEGMENT as f64,
                    uu: block.uu[place],
                    c: ratio.abs() * (block.c[place] - c_before[place]),
                };
                let keeps_sign = course.keeps_sign();
                is_open |= u8::from(!keeps_sign & (inside[place] > 0.0)) << place;
                areas[place] += if keeps_sign { area.abs() } else { 0.0 };
            }
            while is_open != 0 {
                let place = is_open.trailing_zeros() as usize;
                open.push(OpenSegment { block: index, first: place * SEGMENT, before: before[place] });
                is_open &= is_open - 1;
            }
        }
        areas.iter().sum()
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

    /// The course of D through a segment, which begins at `before` and takes these steps.
    fn course(before: f64, steps: &[f64]) -> (Course, bool) {
        let (mut d, mut sum, mut changes) = (before, 0.0, false);
        for step in steps {
            d += step;
            sum += d;
            changes |= d * before < 0.0;
        }
        let uu = steps.iter().map(|step| step * step).sum();
        (Course { before, after: d, mean: sum / steps.len() as f64, uu, c: 0.0 }, changes)
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
        ) {
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
                let (course, changes) = course(sign * before, &steps);
                prop_assert!(!(changes && course.keeps_sign()), "{course:?}");
            }
        }

        /// Where no entry has changed, only the normalisers make a course, straight through 0.
        #[test]
        fn a_drift_through_0_changes_the_sign(scale in -30f64..0.0, share in 0f64..1.0) {
            let drift = scale.exp();
            let (before, after) = (share * drift, share * drift - drift);
            let course = Course { before, after, mean: (before + after) / 2.0, uu: 0.0, c: drift };
            prop_assert!(!course.keeps_sign(), "{course:?}");
        }

        /// One that stays away from 0 keeps its sign, though its steps would carry it there if all went the same way.
        #[test]
        fn a_course_that_stays_away_from_0_keeps_its_sign(
            swings in prop::collection::vec(0.8f64..1.0, SEGMENT / 2),
        ) {
            let steps: Vec<f64> = swings.iter().flat_map(|swing| [*swing, -swing]).collect();
            for before in [0.3 * SEGMENT as f64, -0.3 * SEGMENT as f64] {
                let (course, _) = course(before, &steps);
                prop_assert!(course.keeps_sign(), "{course:?}");
            }
        }
    }
}
