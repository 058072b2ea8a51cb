//! What a part adds to the running sums of u and c, [`SEGMENT`] entries at a time.

use super::part::{BLOCK, SEGMENT};
use crate::vector::{Instructions, Kernel, LANES, Vectors};

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

/// The segments of one part, a list for each of their numbers.
#[derive(Debug)]
pub(crate) struct Segments {
    /// The running sum of u at the start of each segment, and at the end of the last.
    u: Vec<f64>,
    c: Vec<f64>,
    u_area: Vec<f64>,
    c_area: Vec<f64>,
    /// At least the sum of |u|: sqrt(n sum(u^2)), by the Cauchy-Schwarz inequality.
    u_variation: Vec<f64>,
}

impl Default for Segments {
    fn default() -> Self {
        let empty = Vec::new;
        Self { u: vec![0.0], c: vec![0.0], u_area: empty(), c_area: empty(), u_variation: empty() }
    }
}

/// The running sums of u and c at one place, and the ratio of their totals.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Running {
    pub(crate) u: f64,
    pub(crate) c: f64,
    pub(crate) ratio: f64,
}

impl Segments {
    pub(crate) fn clear(&mut self) {
        self.u.truncate(1);
        self.c.truncate(1);
        self.u_area.clear();
        self.c_area.clear();
        self.u_variation.clear();
    }

    /// Adds the first `count` segments of a block.
    #[inline]
    pub(crate) fn extend(&mut self, block: &BlockSegments, count: usize) {
        let BlockSegments { u, c, u_area, c_area, uu } = block;
        let [u_start, c_start] = self.totals();
        let (u_running, c_running) = (running_sums(u_start, u), running_sums(c_start, c));
        self.u.extend_from_slice(&u_running[..count]);
        self.c.extend_from_slice(&c_running[..count]);
        self.u_area.extend_from_slice(&u_area[..count]);
        self.c_area.extend_from_slice(&c_area[..count]);
        self.u_variation.extend(uu[..count].iter().map(|uu| (SEGMENT as f64 * uu).sqrt()));
    }

    /// The sums of u and c.
    pub(crate) fn totals(&self) -> [f64; 2] {
        // Neither list is ever empty.
        [&self.u, &self.c].map(|sums| sums.last().copied().unwrap_or_default())
    }

    /// The difference U - ratio C of the running sums at the start of a segment.
    pub(crate) fn before(&self, segment: usize, start: Running) -> f64 {
        (start.u + self.u[segment]) - start.ratio * (start.c + self.c[segment])
    }

    /// The sum of |U - ratio C| over the entries of the segments in which its sign cannot change; the other
    /// segments are left in `open`. `start` is what the parts before have summed up to, `entries` how many
    /// there are in this one.
    pub(crate) fn area(
        &self,
        start: Running,
        entries: usize,
        open: &mut Vec<usize>,
        instructions: Instructions,
    ) -> f64 {
        instructions.run(Area { segments: self, start, entries, open })
    }
}

fn running_sums(start: f64, sums: &[f64; PER_BLOCK]) -> [f64; PER_BLOCK] {
    let (mut sums, mut running) = (*sums, start);
    for sum in &mut sums {
        running += *sum;
        *sum = running;
    }
    sums
}

struct Area<'a> {
    segments: &'a Segments,
    start: Running,
    entries: usize,
    open: &'a mut Vec<usize>,
}

/// Covers the rounding of sums in `f32`.
const MARGIN: f64 = 1.0 + 1e-5;

/// Segments that are looked at together.
const TOGETHER: usize = 8 * LANES;

impl Kernel for Area<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<S: Vectors>(self, _: S) -> f64 {
        let Self { segments, start, entries, open } = self;
        open.clear();
        let (mut areas, mut is_closed) = ([0.0; TOGETHER], [false; TOGETHER]);
        let mut sum = 0.0;
        let whole = entries / SEGMENT;
        let firsts = (0..whole).step_by(TOGETHER).chain((whole < segments.u_area.len()).then_some(whole));
        for first in firsts {
            let (last, inside) = match first {
                first if first == whole => (whole + 1, entries % SEGMENT),
                first => (whole.min(first + TOGETHER), SEGMENT),
            };
            let count = last - first;
            let (areas, is_closed) = (&mut areas[..count], &mut is_closed[..count]);
            let (u, u_after) = (&segments.u[first..last], &segments.u[first + 1..=last]);
            let (c, c_after) = (&segments.c[first..last], &segments.c[first + 1..=last]);
            let (u_area, c_area) = (&segments.u_area[first..last], &segments.c_area[first..last]);
            let u_variation = &segments.u_variation[first..last];
            let difference = |u: f64, c: f64| (start.u + u) - start.ratio * (start.c + c);
            for segment in 0..count {
                let before = difference(u[segment], c[segment]);
                let after = difference(u_after[segment], c_after[segment]);
                let variation = u_variation[segment] + start.ratio.abs() * (c_after[segment] - c[segment]);
                let area = inside as f64 * before + (u_area[segment] - start.ratio * c_area[segment]);
                // To change its sign the difference has to go all the way to 0, and on to where it ends.
                is_closed[segment] = variation * MARGIN <= before.abs() + after.abs();
                areas[segment] = if is_closed[segment] { area.abs() } else { 0.0 };
            }
            for (segment, (area, is_closed)) in areas.iter().zip(is_closed).enumerate() {
                sum += area;
                if !*is_closed {
                    open.push(first + segment);
                }
            }
        }
        sum
    }
}
