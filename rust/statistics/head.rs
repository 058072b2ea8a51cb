//! Everything that is measured of one head, from the parts of its weight vector.

use super::divergence::{self, Divergences};
use super::displacement::Displacement;
use super::part::Part;
use super::softmax::{self, Accumulator, Frame, NotFinite, Scaling, Sums};
use super::transport::{self, Stretch};
use crate::vector::Instructions;

/// What every statistic of a head is made of.
#[derive(Clone, Copy, Debug, Default)]
pub struct Measured {
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
    pub(super) sorted_wasserstein: f64,
}

/// The sums of one part, which every head that reads the part shares.
#[derive(Debug, Default)]
pub struct PartSums {
    accumulator: Accumulator,
    blocks: usize,
}

impl PartSums {
    /// Begins another part.
    pub fn clear(&mut self) {
        self.accumulator.clear();
        self.blocks = 0;
    }

    /// Adds the blocks of `part` from where the last call ended up to the first that is not whole among
    /// the first `entries` entries (to the end of the part, where that is `entries`).
    pub fn add_up_to(
        &mut self,
        entries: usize,
        part: &Part,
        temperature: f64,
        instructions: Instructions,
    ) -> Result<(), NotFinite> {
        let end = if entries == part.entries() { part.blocks() } else { entries / super::part::BLOCK };
        let blocks = self.blocks..end.max(self.blocks);
        self.blocks = blocks.end;
        let scaling = Scaling { temperature, frame: None };
        instructions.run(
            #[inline(always)]
            || self.accumulator.add(part, blocks, &scaling),
        )
    }
}

/// Measures one head. `parts` are the stretches of its weight vector in order, each with its sums.
pub fn measure(
    parts: &[(Part, &PartSums)],
    temperature: f64,
    sorted: bool,
    instructions: Instructions,
) -> Result<Measured, NotFinite> {
    let mut sums = Sums::default();
    for (_, part) in parts {
        sums.merge(&part.accumulator.sums());
    }
    let mut measured = if is_well_conditioned(&sums) {
        let stretches: Vec<_> = parts
            .iter()
            .map(|(part, sums)| Stretch { part, segments: sums.accumulator.segments() })
            .collect();
        finish(&sums, &stretches, &Scaling { temperature, frame: None }, instructions)
    } else {
        let parts: Vec<Part> = parts.iter().map(|(part, _)| *part).collect();
        Measured { displacement: sums.displacement, ..measure_in_frame(&parts, temperature, instructions)? }
    };
    if sorted {
        let parts: Vec<Part> = parts.iter().map(|(part, _)| *part).collect();
        measured.sorted_wasserstein = transport::between_values(&parts);
    }
    Ok(measured)
}

/// Whether sums taken without a frame give every statistic to full precision: every block in reach of
/// its series, and no large part of u common to all entries, which the normalisation would cancel.
fn is_well_conditioned(sums: &Sums) -> bool {
    if sums.has_far {
        return false;
    }
    let ratio = sums.u / sums.v;
    sums.uu == 0.0
        || (ratio.ln_1p().abs() <= divergence::SHORT_REACH && distance_squared(sums, ratio) >= sums.uu / 64.0)
}

/// How closely the centre has to be known for divergences in closed form, which cannot be moved.
const FAR_PRECISION: f64 = 1e-10;

/// Measures one head relative to its largest entries, all in `f64`: right for every finite theta, and
/// slower. The first pass finds log(Z_T / Z_B), about which the last takes its moments.
fn measure_in_frame(
    parts: &[Part],
    temperature: f64,
    instructions: Instructions,
) -> Result<Measured, NotFinite> {
    let mut frame = softmax::frame(parts);
    let mut accumulators: Vec<Accumulator> = parts.iter().map(|_| Accumulator::default()).collect();
    loop {
        let scaling = Scaling { temperature, frame: Some(frame) };
        let mut sums = Sums::default();
        for (part, accumulator) in parts.iter().zip(&mut accumulators) {
            accumulator.clear();
            instructions.run(
                #[inline(always)]
                || accumulator.add(part, 0..part.blocks(), &scaling),
            )?;
            sums.merge(&accumulator.sums());
        }
        let Frame { center, .. } = frame;
        let shift = (sums.u / sums.v).ln_1p();
        let reach = if sums.has_far { FAR_PRECISION } else { divergence::SHORT_REACH };
        if (shift - center).abs() <= reach {
            let stretches: Vec<_> = parts
                .iter()
                .zip(&accumulators)
                .map(|(part, accumulator)| Stretch { part, segments: accumulator.segments() })
                .collect();
            return Ok(finish(&sums, &stretches, &scaling, instructions));
        }
        frame.center = shift;
    }
}

/// Z_T^2 times the squared norm of P_T - P_B.
fn distance_squared(sums: &Sums, ratio: f64) -> f64 {
    sums.uu - 2.0 * ratio * sums.uv + ratio * ratio * sums.vv
}

fn finish(sums: &Sums, stretches: &[Stretch], scaling: &Scaling, instructions: Instructions) -> Measured {
    let ratio = sums.u / sums.v;
    let normaliser = sums.v + sums.u;
    let center = scaling.frame.map_or(0.0, |frame| frame.center);

    // 1 - cos = sin^2 / (1 + cos), and the area that spans sin is the same for (v, v + u) as for (v, u).
    let tuned_squared = sums.vv + 2.0 * sums.uv + sums.uu;
    let norms = sums.vv * tuned_squared;
    let cosine = (sums.vv + sums.uv) / norms.sqrt();
    let sine_squared = (sums.vv * sums.uu - sums.uv * sums.uv).max(0.0) / norms;

    let near = divergence::of_moments(&sums.moments, ratio.ln_1p() - center);
    let area = instructions.run(
        #[inline(always)]
        || transport::area(stretches, ratio, scaling),
    );
    Measured {
        entries: sums.entries,
        displacement: sums.displacement,
        area: area / normaliser,
        distance: distance_squared(sums, ratio).max(0.0).sqrt() / normaliser,
        cosine: sine_squared / (1.0 + cosine),
        divergences: Divergences {
            kl: (near.kl + sums.far.kl) / sums.v,
            js: (near.js + sums.far.js) / sums.v,
        },
        sorted_wasserstein: f64::NAN,
    }
}
