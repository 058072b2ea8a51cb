//! Sums a part block by block.

use std::ops::Range;

use super::displacement::{BlockDisplacement, Displacement, Extent};
use super::divergence;
use super::lanes::Lanes;
use super::part::{Block, Entries, PAIR, Pairs, Part, SEGMENT};
use super::real::Real;
use super::segments::{BlockSegments, PER_BLOCK, Segments};
use super::series::{Terms, terms, weight_of_power};
use super::softmax::{NotFinite, Scaling, Sums};
use super::way::{self, Reach, Scratch, Visitor, Way};
use crate::vector::{Kernel, LANES, Vectors};

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
}

impl Accumulator {
    pub(crate) fn new(scaling: Scaling) -> Self {
        Self { scaling, sums: Sums::default(), segments: Segments::default(), ways: Vec::new() }
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
        part: &Part,
        blocks: Range<usize>,
        scratch: &mut Scratch,
    ) -> Result<(), NotFinite> {
        let scaling = self.scaling;
        for block in blocks {
            self.sums.entries += part.entries_of(block);
            let expected = self.ways.last().copied();
            let way = way::visit(part, block, &scaling, expected, scratch, self)?;
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

/// Adds one block to the sums, if it is in reach of the series.
struct AddBlock<'a, R, P, const X: usize, const K: usize> {
    pairs: P,
    valid: usize,
    accumulator: &'a mut Accumulator,
    width: std::marker::PhantomData<R>,
}

impl<R: Real, P: Pairs<R>, const X: usize, const K: usize> Kernel for AddBlock<'_, R, P, X, K> {
    type Output = Extent;

    #[inline(always)]
    fn run<S: Vectors>(self, simd: S) -> Extent {
        let Self { pairs, valid, accumulator, .. } = self;
        let mut block = BlockLanes::<R::Lanes<S>, K>::none(simd);
        let mut segments = [[R::Lanes::<S>::splat(simd, 0.0); LANES]; 3];
        let [totals, areas, rest] = &mut segments;
        for place in 0..PER_BLOCK {
            let first = place * SEGMENT / PAIR;
            let mut segment = SegmentLanes::first(block.add::<X>(pairs.load(simd, first)));
            for index in first + 1..first + SEGMENT / PAIR {
                segment.add(block.add::<X>(pairs.load(simd, index)));
            }
            (totals[place], totals[PER_BLOCK + place]) = (segment.u, segment.c);
            areas[place] = area(segment.u, segment.u_running, segment.u_odd);
            areas[PER_BLOCK + place] = area(segment.c, segment.c_running, segment.c_odd);
            rest[place] = segment.uu;
        }
        // The lanes of everything are added up together, which keeps the loop above busy.
        let [base_squares, delta_squares, changed] = block.displacement.lanes();
        let (second, third) = (block.moments[2], if K == 3 { block.last_moment } else { block.moments[3] });
        for (rest, lanes) in rest[PER_BLOCK..].iter_mut().zip([
            block.cc,
            block.uc,
            base_squares,
            delta_squares,
            changed,
            second,
            third,
        ]) {
            *rest = lanes;
        }
        let [totals, areas, rest] = segments;
        let ([u, c], [u_area, c_area]) = (halves(Lanes::sums(totals)), halves(Lanes::sums(areas)));
        let [uu, [cc, uc, base_squares, delta_squares, changed, second, third, _]] =
            halves(Lanes::sums(rest));

        let (displacement, extent) = block.displacement.of_sums([base_squares, delta_squares, changed]);
        let Accumulator { sums, segments, scaling, .. } = accumulator;
        if R::IS_NARROW {
            if !Reach::new(X, K).covers(&extent) {
                return extent;
            }
            sums.displacement.merge(&displacement.scaled(scaling.temperature));
            sums.has_narrow = true;
        }
        let mut of_block = BlockSegments { u, c, u_area, c_area, uu };
        let count = valid.div_ceil(SEGMENT);
        // Entries past the end are 0, but the running sums go on over them.
        let absent = (count * SEGMENT - valid) as f64;
        of_block.u_area[count - 1] -= absent * u[count - 1];
        of_block.c_area[count - 1] -= absent * c[count - 1];
        segments.extend(&of_block, count);
        sums.cc += cc;
        sums.uc += uc;
        sums.uu += uu.iter().sum::<f64>();
        let (mut mean, mut difference): (f64, f64) = (c.iter().sum(), u.iter().sum());
        for k in 2..=K {
            let moment = match k {
                2 => second,
                3 => third,
                k if k == K => block.last_moment.sum(),
                _ => block.moments[k].sum(),
            };
            sums.moments[k] += moment;
            // What c and u have in them besides w and w y.
            if k % 2 == 0 && k < K - 1 {
                mean -= weight_of_power(k) * moment;
            } else if k % 2 == 1 && k < K {
                difference -= weight_of_power(k) * moment;
            }
        }
        sums.moments[0] += mean;
        sums.moments[1] += difference;
        extent
    }
}

/// The sums of one block as they grow, but for those of its segments.
struct BlockLanes<N, const K: usize> {
    displacement: BlockDisplacement<N>,
    cc: N,
    uc: N,
    /// The sums of w y^k from k = 2 to K - 1; those before follow from the sums of c and u.
    moments: [N; K],
    /// The sum of w y^K.
    last_moment: N,
}

impl<N: Lanes, const K: usize> BlockLanes<N, K> {
    #[inline(always)]
    fn none(simd: N::Vectors) -> Self {
        let zero = N::splat(simd, 0.0);
        Self {
            displacement: BlockDisplacement::none(simd),
            cc: zero,
            uc: zero,
            moments: [zero; K],
            last_moment: zero,
        }
    }

    /// Adds the even entries and the odd ones, and gives their u and c.
    #[inline(always)]
    fn add<const X: usize>(&mut self, pair: [Entries<N>; 2]) -> [(N, N); 2] {
        let mut halves = [(self.cc, self.cc); 2];
        for (odd, (entries, half)) in pair.into_iter().zip(&mut halves).enumerate() {
            let y = entries.delta;
            if N::Number::IS_NARROW {
                self.displacement.add(odd, entries.base, y);
            }
            let Terms { c, u, powers } = terms::<N, X, K>(entries);
            self.cc = c.mul_add(c, self.cc);
            self.uc = u.mul_add(c, self.uc);
            #[expect(
                clippy::needless_range_loop,
                reason = "a range is unrolled, which keeps the sums in registers"
            )]
            for k in 2..K {
                self.moments[k] = self.moments[k] + powers[k];
            }
            self.last_moment = powers[K - 1].mul_add(y, self.last_moment);
            *half = (u, c);
        }
        halves
    }
}

fn halves(numbers: [f64; LANES]) -> [[f64; PER_BLOCK]; 2] {
    [0, PER_BLOCK].map(|start| std::array::from_fn(|place| numbers[start + place]))
}

/// The sums of one segment as they grow.
#[derive(Clone, Copy)]
struct SegmentLanes<N> {
    u: N,
    c: N,
    /// The sums, over the pairs of vectors, of what u and c have come to.
    u_running: N,
    c_running: N,
    /// The sums over the odd entries.
    u_odd: N,
    c_odd: N,
    uu: N,
}

impl<N: Lanes> SegmentLanes<N> {
    /// The first pair of vectors: u and c of the even entries and of the odd ones.
    #[inline(always)]
    fn first([(u, c), (u_odd, c_odd)]: [(N, N); 2]) -> Self {
        let (u_both, c_both) = (u + u_odd, c + c_odd);
        let uu = u_odd.mul_add(u_odd, u * u);
        Self { u: u_both, c: c_both, u_running: u_both, c_running: c_both, u_odd, c_odd, uu }
    }

    /// The next.
    #[inline(always)]
    fn add(&mut self, [(u, c), (u_odd, c_odd)]: [(N, N); 2]) {
        self.u = self.u + (u + u_odd);
        self.c = self.c + (c + c_odd);
        self.u_running = self.u_running + self.u;
        self.c_running = self.c_running + self.c;
        self.u_odd = self.u_odd + u_odd;
        self.c_odd = self.c_odd + c_odd;
        self.uu = u_odd.mul_add(u_odd, u.mul_add(u, self.uu));
    }
}

/// The sum over a segment of the running sums, lane by lane: entry j = PAIR i + 2 lane, or one more if it is odd,
/// is part of SEGMENT - j running sums.
#[inline(always)]
fn area<N: Lanes>(sums: N, running: N, odd: N) -> N {
    let mut place = [N::Number::default(); LANES];
    for (lane, place) in place.iter_mut().enumerate() {
        *place = N::Number::of(-2.0 * lane as f64);
    }
    let place = N::load(sums.simd(), &place);
    running.mul_add(sums.constant(PAIR as f64), sums * place) - odd
}

impl Visitor for Accumulator {
    fn series<R: Real, P: Pairs<R>, const X: usize, const K: usize>(
        &mut self,
        pairs: P,
        valid: usize,
    ) -> Extent {
        let instructions = self.scaling.instructions;
        instructions.run(AddBlock::<R, P, X, K> {
            pairs,
            valid,
            accumulator: self,
            width: std::marker::PhantomData,
        })
    }

    fn closed_form(&mut self, x: &Block<f64>, y: &Block<f64>, valid: usize) {
        let mut block = BlockSegments::default();
        for (place, (x, y)) in x[..valid].chunks(SEGMENT).zip(y[..valid].chunks(SEGMENT)).enumerate() {
            let (mut u_sum, mut c_sum) = (0.0, 0.0);
            for (x, y) in x.iter().zip(y) {
                let (u, c) = closed_form_entry(*x, *y);
                u_sum += u;
                c_sum += c;
                block.u_area[place] += u_sum;
                block.c_area[place] += c_sum;
                block.uu[place] += u * u;
                self.sums.cc += c * c;
                self.sums.uc += u * c;
                let divergences = divergence::of_entry(x.exp(), (x + y).exp(), *y);
                self.sums.far.kl += divergences.kl;
                self.sums.far.js += divergences.js;
            }
            (block.u[place], block.c[place]) = (u_sum, c_sum);
            self.sums.uu += block.uu[place];
            self.sums.far_u += u_sum;
            self.sums.far_c += c_sum;
        }
        self.segments.extend(&block, valid.div_ceil(SEGMENT));
        self.sums.has_far = true;
    }

    fn out_of_reach(&mut self, valid: usize) {
        self.sums.has_far = true;
        self.segments.extend(&BlockSegments::default(), valid.div_ceil(SEGMENT));
    }
}

/// u and c where neither is bounded.
pub(crate) fn closed_form_entry(x: f64, y: f64) -> (f64, f64) {
    let (base, tuned) = (x.exp(), (x + y).exp());
    let u = if y.abs() < 1.0 { base * y.exp_m1() } else { tuned - base };
    (u, 0.5 * (base + tuned))
}
