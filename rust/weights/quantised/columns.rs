//! What the formats share whose codes are stored [in, out], so that a head is columns of them.

use std::ops::Range;

use super::stored::Stored;
use crate::error::{Error, Result};

/// The scales of groups of input features, [groups, out], and which group each input feature is in.
#[derive(Debug)]
pub(super) struct Groups {
    scales: Stored,
    /// How many groups there are.
    pub(super) count: usize,
    /// Input features in a group, where they are in order.
    size: usize,
    /// Of the weights: out, in.
    features: [usize; 2],
    /// I32 [in]: the group of each input feature, where they are not in order.
    order: Option<Stored>,
}

impl Groups {
    /// `size` is what the configuration says of how many input features are in a group, -1 for all; without
    /// it the scales alone decide.
    pub(super) fn new(
        scales: Stored,
        features: [usize; 2],
        size: Option<i64>,
        order: Option<Stored>,
    ) -> Result<Self> {
        let [out, inputs] = features;
        scales.scale_format()?;
        let size = match size {
            None => {
                let count = scales.matrix()?[0];
                if !inputs.is_multiple_of(count) {
                    let problem =
                        format!("has {count} groups, which do not divide {inputs} input features evenly");
                    return Err(scales.refuse(problem));
                }
                inputs / count
            }
            Some(-1) => inputs,
            Some(size) => match usize::try_from(size) {
                Ok(size @ 1..) => size,
                _ => {
                    let problem =
                        format!("belongs to groups of `group_size` {size}; expected -1 or more than 0");
                    return Err(scales.refuse(problem));
                }
            },
        };
        let count = inputs.div_ceil(size);
        let reason = format!("{inputs} input features in groups of {size}, {out} output features");
        scales.expect_shape(&[count, out], &reason)?;
        if let Some(order) = &order {
            order.expect_dtype(safetensors::Dtype::I32)?;
            order.expect_shape(&[inputs], "the input features")?;
        }
        Ok(Self { scales, count, size, features, order })
    }

    /// The group of each input feature.
    pub(super) fn of_inputs(&self, scratch: &mut Vec<u8>) -> Result<Vec<usize>> {
        let inputs = self.features[1];
        match &self.order {
            None => Ok((0..inputs).map(|input| input / self.size).collect()),
            Some(order) => {
                let mut words = Vec::new();
                order.read_words(0..inputs, scratch, &mut words)?;
                check_groups(order, &words, self.count)
            }
        }
    }

    /// The scales of these output features: groups x rows.
    pub(super) fn read_scales(&self, rows: &Range<usize>, scratch: &mut Vec<u8>) -> Result<Vec<f32>> {
        let mut scales = Vec::with_capacity(self.count * rows.len());
        for group in 0..self.count {
            let start = group * self.features[0];
            scales.extend(self.scales.read_scales(start + rows.start..start + rows.end, scratch)?);
        }
        Ok(scales)
    }

    /// Bytes that the above read for this many output features.
    pub(super) fn stored_bytes(&self, rows: usize) -> u64 {
        let scale = self.scales.dtype().bitsize() / 8;
        (self.count * rows * scale) as u64 + self.order.as_ref().map_or(0, Stored::length)
    }
}

/// The words as numbers of groups, of which there are `count`.
pub(super) fn check_groups(order: &Stored, words: &[u32], count: usize) -> Result<Vec<usize>> {
    let refuse = |place: usize, word: u32| -> Error {
        order.refuse(format!(
            "puts input feature {place} into group {}; expected 0 to {}",
            word.cast_signed(),
            count - 1
        ))
    };
    let groups = words.iter().enumerate().map(|(place, word)| match *word as usize {
        group if group < count => Ok(group),
        _ => Err(refuse(place, *word)),
    });
    groups.collect()
}
