//! Everything that is measured of one head, from the parts of its weight vector.

use std::{iter, mem, slice};

use super::accumulate::Accumulator;
use super::displacement::Displacement;
use super::divergence::{self, Divergences};
use super::precision::{NARROW_REACH, Scratch, WIDE_REACH};
use super::sign_bounds::Running;
use super::softmax_sums::{Frame, NonFiniteEntry, Scaling, Sums};
use super::sorted_wasserstein;
use super::wasserstein::go_through;
use super::weight_vector::{BLOCK, WeightVector, for_each_entry};
use crate::simd::Instructions;

/// What every statistic of a head is made of.
#[derive(Clone, Copy, Debug)]
pub struct HeadMeasurements {
    pub(super) entries: usize,
    pub(super) displacement: Displacement,
    /// The sum of |C_T - C_B| over the entries.
    pub(super) area: f64,
    /// The norm of P_T - P_B.
    pub(super) distance: f64,
    /// One less the cosine of the angle between P_B and P_T.
    pub(super) cosine: f64,
    pub(super) divergences: Divergences,
    /// W1 between the sets of weight values, where it was asked for.
    pub(super) sorted_wasserstein: Option<f64>,
    /// Whether numbers in `f32` took part.
    has_narrow: bool,
}

/// The mean difference between the running sums, in units of the norm of P_T - P_B, below which the roundings of `f32`
/// show in it. Changes in no order give five times as much, sqrt(pi / 32).
const DELICATE: f64 = 1.0 / 16.0;

impl HeadMeasurements {
    /// Whether the running sums stay so near to one another, much nearer than by chance, that the head had better be
    /// [measured again](GroupMeasurement::remeasure_in_f64) with more digits.
    pub fn needs_f64(&self) -> bool {
        self.has_narrow && self.area < DELICATE * self.distance * self.entries as f64
    }
}

/// The sums of one part, which every head that reads the part shares.
#[derive(Debug)]
pub struct VectorSums {
    accumulator: Accumulator,
    blocks: usize,
    scratch: Scratch,
}

impl VectorSums {
    /// Sums of nothing.
    pub fn new(temperature: f64, instructions: Instructions) -> Self {
        let scaling = Scaling { temperature, frame: None, instructions };
        Self { accumulator: Accumulator::new(scaling), blocks: 0, scratch: Scratch::default() }
    }

    /// Begins another part.
    pub fn clear(&mut self) {
        self.accumulator.clear();
        self.blocks = 0;
    }

    /// Adds what is whole of the first `entries` entries of `part` and was not added before.
    pub fn add_up_to(&mut self, entries: usize, part: &WeightVector) -> Result<(), NonFiniteEntry> {
        let end = if entries == part.entries() { part.blocks() } else { entries / BLOCK };
        let blocks = self.blocks..end;
        self.blocks = end;
        self.accumulator.add(part, blocks, &mut self.scratch)
    }
}

/// The heads of a group, one after the other, and what they share: the sums of a part are taken once, and the area under
/// the running difference of each head is found in one walk through it.
///
/// The weight vector of a head is its own part and then the parts that are shared.
#[derive(Debug)]
pub struct GroupMeasurement<'a> {
    shared: Vec<(WeightVector<'a>, &'a VectorSums)>,
    scaling: Scaling,
    sorted: bool,
    measured: Vec<HeadMeasurements>,
    /// Those that still have to go through the shared parts, with their places and what their areas are scaled by.
    running: Vec<Running>,
    scales: Vec<(usize, f64)>,
    /// The sums of the shared parts in `f64`, once somebody needs them.
    precise: Vec<Accumulator>,
    scratch: Scratch,
}

/// An entry of a head that is NaN or infinite.
#[derive(Clone, Copy, Debug)]
pub struct NonFiniteIn {
    /// The weight vector that holds it: 0 is the head's own, 1 the first shared one.
    pub vector: usize,
    /// The entry of that weight vector.
    pub entry: NonFiniteEntry,
}

impl<'a> GroupMeasurement<'a> {
    /// No heads yet. The sums are of the same temperature. W1 between the sets of values needs a sort and is left out
    /// unless `sorted`.
    pub fn new(
        shared: Vec<(WeightVector<'a>, &'a VectorSums)>,
        temperature: f64,
        sorted: bool,
        instructions: Instructions,
    ) -> Self {
        Self {
            shared,
            scaling: Scaling { temperature, frame: None, instructions },
            sorted,
            measured: Vec::new(),
            running: Vec::new(),
            scales: Vec::new(),
            precise: Vec::new(),
            scratch: Scratch::default(),
        }
    }

    /// Adds a head, of whose own part nothing is needed afterwards.
    pub fn add(&mut self, own: WeightVector, own_sums: &VectorSums) -> Result<(), NonFiniteIn> {
        let accumulator = &own_sums.accumulator;
        let sums =
            merged(iter::once(accumulator).chain(self.shared.iter().map(|(_, sums)| &sums.accumulator)));
        let mut measured = if is_well_conditioned(&sums) {
            let mut running = Running::new(sums.ratio());
            go_through(&own, accumulator, slice::from_mut(&mut running), &mut self.scratch);
            self.scales.push((self.measured.len(), scale(&sums)));
            self.running.push(running);
            finish(&sums, 0.0)
        } else {
            let framed = measure_in_frame(&self.parts_of(own), &self.scaling)?;
            HeadMeasurements { displacement: sums.displacement, ..framed }
        };
        if self.sorted {
            measured.sorted_wasserstein = Some(sorted_wasserstein::distance(&self.parts_of(own)));
        }
        self.measured.push(measured);
        Ok(())
    }

    /// Goes through the shared parts, and gives what is measured of each head.
    pub fn finish(&mut self) -> Vec<HeadMeasurements> {
        for (part, sums) in &self.shared {
            go_through(part, &sums.accumulator, &mut self.running, &mut self.scratch);
        }
        for ((place, scale), running) in self.scales.drain(..).zip(self.running.drain(..)) {
            self.measured[place].area = scale * running.area();
        }
        mem::take(&mut self.measured)
    }

    /// Measures a head once more, all in `f64`. `first` is what was measured of it before.
    pub fn remeasure_in_f64(
        &mut self,
        own: WeightVector,
        first: &HeadMeasurements,
    ) -> Result<HeadMeasurements, NonFiniteIn> {
        // A frame leaves out the ways in `f32`; such weights are near enough to 0 for one around it.
        let scaling = Scaling { frame: Some(Frame::default()), ..self.scaling };
        for (place, (part, _)) in self.shared.iter().enumerate().skip(self.precise.len()) {
            let accumulator = summed(part, scaling, &mut self.scratch)
                .map_err(|entry| NonFiniteIn { vector: place + 1, entry })?;
            self.precise.push(accumulator);
        }
        let of_own =
            summed(&own, scaling, &mut self.scratch).map_err(|entry| NonFiniteIn { vector: 0, entry })?;
        let parts = iter::once(&own).chain(self.shared.iter().map(|(part, _)| part));
        let accumulators = iter::once(&of_own).chain(&self.precise);
        let sums = merged(accumulators.clone());
        let measured = finish_alone(&sums, parts.zip(accumulators), &mut self.scratch);
        let HeadMeasurements { displacement, sorted_wasserstein, .. } = *first;
        Ok(HeadMeasurements { displacement, sorted_wasserstein, ..measured })
    }

    fn parts_of<'b>(&'b self, own: WeightVector<'b>) -> Vec<WeightVector<'b>> {
        iter::once(own).chain(self.shared.iter().map(|(part, _)| *part)).collect()
    }
}

fn summed(
    part: &WeightVector,
    scaling: Scaling,
    scratch: &mut Scratch,
) -> Result<Accumulator, NonFiniteEntry> {
    let mut accumulator = Accumulator::new(scaling);
    accumulator.add(part, 0..part.blocks(), scratch)?;
    Ok(accumulator)
}

fn merged<'a>(accumulators: impl Iterator<Item = &'a Accumulator>) -> Sums {
    let mut sums = Sums::default();
    for accumulator in accumulators {
        sums.merge(&accumulator.sums());
    }
    sums
}

/// Whether sums taken without a frame give every statistic to full precision: every block in reach of
/// its series, and no large part of u common to all entries, which the normalisation would cancel.
fn is_well_conditioned(sums: &Sums) -> bool {
    if sums.has_far {
        return false;
    }
    let reach = if sums.has_narrow { NARROW_REACH } else { WIDE_REACH };
    let (shift, _) = sums.normalisers();
    sums.uu == 0.0 || (shift.abs() <= reach && sums.distance_squared() >= sums.uu / 4.0)
}

/// How closely the centre has to be known for divergences in closed form, which cannot be moved.
const CENTER_PRECISION: f64 = 1e-10;

/// Many more passes than it takes. Where somebody writes to the weights meanwhile, no pass might be the last.
const PASSES: usize = 64;

/// Measures one head relative to its largest entries, all in `f64`: right for every finite theta, and
/// slower. The first pass finds log(Z_T / Z_B), from which the next sets out.
fn measure_in_frame(parts: &[WeightVector], scaling: &Scaling) -> Result<HeadMeasurements, NonFiniteIn> {
    let (mut frame, mut passes, mut scratch) = (frame(parts), 0, Scratch::default());
    loop {
        passes += 1;
        let scaling = Scaling { frame: Some(frame), ..*scaling };
        let accumulators = (parts.iter().enumerate())
            .map(|(place, part)| {
                summed(part, scaling, &mut scratch).map_err(|entry| NonFiniteIn { vector: place, entry })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let sums = merged(accumulators.iter());
        let (rest, _) = sums.normalisers();
        let reach = if sums.has_far { CENTER_PRECISION } else { WIDE_REACH };
        // Where a sum has overflowed there is no centre to find, and the caller refuses what comes out.
        if rest.abs() <= reach || !rest.is_finite() || passes == PASSES {
            return Ok(finish_alone(&sums, parts.iter().zip(&accumulators), &mut scratch));
        }
        frame.center += rest;
    }
}

/// The largest entries of both sides.
fn frame(parts: &[WeightVector]) -> Frame {
    let (mut base_max, mut tuned_max, mut of_tuned) = (f64::NEG_INFINITY, f64::NEG_INFINITY, (0.0, 0.0));
    for_each_entry(parts, |base, delta| {
        base_max = base_max.max(base);
        if base + delta > tuned_max {
            tuned_max = base + delta;
            of_tuned = (base, delta);
        }
    });
    Frame { base_max, shift: (of_tuned.0 - base_max) + of_tuned.1, center: 0.0 }
}

/// Measures a head by itself: the sums over all its parts, and each part with its own.
fn finish_alone<'a>(
    sums: &Sums,
    parts: impl Iterator<Item = (&'a WeightVector<'a>, &'a Accumulator)>,
    scratch: &mut Scratch,
) -> HeadMeasurements {
    let mut running = Running::new(sums.ratio());
    for (part, accumulator) in parts {
        go_through(part, accumulator, slice::from_mut(&mut running), scratch);
    }
    finish(sums, running.area())
}

/// From u - rho c to P_T - P_B.
fn scale(sums: &Sums) -> f64 {
    let ratio = sums.ratio();
    1.0 / (sums.c * (1.0 - 0.25 * ratio * ratio))
}

/// What the sums say, and the sum of |U - rho C| over all entries.
fn finish(sums: &Sums, area: f64) -> HeadMeasurements {
    let (shift, normaliser) = sums.normalisers();
    let near = divergence::of_moments(&sums.moments, shift);
    HeadMeasurements {
        entries: sums.entries,
        displacement: sums.displacement,
        area: scale(sums) * area,
        distance: scale(sums) * sums.distance_squared().max(0.0).sqrt(),
        cosine: sums.cosine_distance(),
        divergences: Divergences {
            kl: (near.kl + sums.far.kl) / normaliser,
            js: (near.js + sums.far.js) / normaliser,
        },
        sorted_wasserstein: None,
        has_narrow: sums.has_narrow,
    }
}
