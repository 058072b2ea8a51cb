//! Reads the scales of groups of input features, for formats that store codes as [in, out].

use std::iter;
use std::ops::Range;

use super::tensor::StoredTensor;
use crate::error::{Error, Result};

/// The scales of groups of input features, [groups, out], and the group of each input feature.
#[derive(Debug)]
pub(super) struct InputGroups {
    scales: StoredTensor,
    /// The number of groups.
    pub(super) count: usize,
    /// The number of input features in a group, if they are in order.
    size: usize,
    /// The out and in features of the weights.
    features: [usize; 2],
    /// I32 [in]: the group of each input feature, if they are not in order.
    order: Option<StoredTensor>,
}

impl InputGroups {
    /// `size` is the number of input features in a group that the configuration gives, -1 for all. Without it the
    /// number follows from the shape of the scales.
    pub(super) fn new(
        scales: StoredTensor,
        features: [usize; 2],
        size: Option<i64>,
        order: Option<StoredTensor>,
    ) -> Result<Self> {
        let [out, inputs] = features;
        scales.scale_format()?;
        let size = match size {
            None => {
                let count = scales.matrix()?[0];
                if !inputs.is_multiple_of(count) {
                    let problem =
                        format!("has {count} groups, which do not divide {inputs} input features evenly");
                    return Err(scales.refusal(problem));
                }
                inputs / count
            }
            Some(-1) => inputs,
            Some(size) => match usize::try_from(size) {
                Ok(size @ 1..) => size,
                _ => {
                    let problem =
                        format!("belongs to groups of `group_size` {size}; expected -1 or more than 0");
                    return Err(scales.refusal(problem));
                }
            },
        };
        let count = inputs.div_ceil(size);
        let reason = format!("{inputs} input features in groups of {size}, {out} output features");
        scales.check_shape(&[count, out], &reason)?;
        if let Some(order) = &order {
            order.check(safetensors::Dtype::I32, &[inputs], "the input features")?;
        }
        Ok(Self { scales, count, size, features, order })
    }

    /// Reads the group of each input feature.
    pub(super) fn read_groups(&self, scratch: &mut Vec<u8>) -> Result<Vec<usize>> {
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

    /// Reads the scales of these output features: groups x rows.
    pub(super) fn read_scales(&self, rows: &Range<usize>, scratch: &mut Vec<u8>) -> Result<Vec<f32>> {
        let mut scales = Vec::with_capacity(self.count * rows.len());
        for group in 0..self.count {
            let start = group * self.features[0];
            scales.extend(self.scales.read_scales(start + rows.start..start + rows.end, scratch)?);
        }
        Ok(scales)
    }

    /// The tensors that are read.
    pub(super) fn tensors(&self) -> impl Iterator<Item = &StoredTensor> {
        iter::once(&self.scales).chain(&self.order)
    }

    /// The number of bytes that reading this many output features reads.
    pub(super) fn stored_bytes(&self, rows: usize) -> u64 {
        let scale = self.scales.dtype().bitsize() / 8;
        (self.count * rows * scale) as u64 + self.order.as_ref().map_or(0, StoredTensor::length)
    }
}

/// Checks that the words are numbers of `count` groups.
pub(super) fn check_groups(order: &StoredTensor, words: &[u32], count: usize) -> Result<Vec<usize>> {
    let refusal = |place: usize, word: u32| -> Error {
        order.refusal(format!(
            "puts input feature {place} into group {}; expected 0 to {}",
            word.cast_signed(),
            count - 1
        ))
    };
    let groups = words.iter().enumerate().map(|(place, word)| match *word as usize {
        group if group < count => Ok(group),
        _ => Err(refusal(place, *word)),
    });
    groups.collect()
}
