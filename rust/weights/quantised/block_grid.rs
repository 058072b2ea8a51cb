//! Reads the scales or zero points of the blocks of a matrix: of tensors, rows, groups of columns or rectangles.

use std::ops::Range;

use super::QuantisedModule;
use super::tensor::StoredTensor;
use crate::error::Result;
use crate::number_format::CodeFormat;

/// A tensor with one number for every block of a matrix. Blocks at the lower and right edges may be smaller.
#[derive(Clone, Debug)]
pub(super) struct BlockGrid {
    numbers: StoredTensor,
    format: CodeFormat,
    /// The rows and columns of a block.
    block: [usize; 2],
    /// The number of blocks side by side.
    across: usize,
}

/// The number of blocks down and across.
fn blocks(features: [usize; 2], block: [usize; 2]) -> [usize; 2] {
    [features[0].div_ceil(block[0]), features[1].div_ceil(block[1])]
}

impl BlockGrid {
    /// The grid of scales over a matrix of these features [out, in].
    ///
    /// The blocks have one of the sizes that the configuration gives as `stated`. If it gives none, the size follows
    /// from the shapes.
    pub(super) fn of_scales(
        module: &QuantisedModule<'_>,
        scales: StoredTensor,
        features: [usize; 2],
        stated: Option<&[[usize; 2]]>,
    ) -> Result<Self> {
        let format = scales.scale_format()?;
        let block = match stated {
            Some(stated) => {
                let fits = |block: &&[usize; 2]| {
                    shapes(features, **block).iter().any(|shape| shape == scales.shape())
                };
                *stated.iter().find(fits).ok_or_else(|| {
                    let expected: Vec<String> = stated
                        .iter()
                        .map(|block| {
                            format!(
                                "{:?} for blocks of {} x {}",
                                blocks(features, *block),
                                block[0],
                                block[1]
                            )
                        })
                        .collect();
                    scales.refusal(format!(
                        "should, by {} and the {} x {} weights, have the shape {}, but has the shape {:?}",
                        module.config.source,
                        features[0],
                        features[1],
                        expected.join(" or "),
                        scales.shape()
                    ))
                })?
            }
            None => derive_block(module, &scales, features)?,
        };
        Ok(Self { numbers: scales, format, block, across: blocks(features, block)[1] })
    }

    /// A grid of zero points over the blocks of this one.
    pub(super) fn of_zero_points(&self, zero_points: StoredTensor) -> Result<Self> {
        zero_points.check_shape(self.numbers.shape(), "that of the scales")?;
        match CodeFormat::from_stored(zero_points.dtype()) {
            Some(format) => Ok(Self { numbers: zero_points, format, ..self.clone() }),
            None => Err(zero_points.refusal(format!(
                "should hold zero points, stored as I8 or F8_E4M3, but is stored as {}",
                zero_points.dtype()
            ))),
        }
    }

    /// The rows and columns of a block.
    pub(super) fn block(&self) -> [usize; 2] {
        self.block
    }

    /// The number of blocks side by side.
    pub(super) fn across(&self) -> usize {
        self.across
    }

    /// The rows of blocks that contain these rows of the matrix.
    pub(super) fn rows_of_blocks(&self, rows: &Range<usize>) -> Range<usize> {
        rows.start / self.block[0]..rows.end.div_ceil(self.block[0])
    }

    /// The tensor of the numbers.
    pub(super) fn tensor(&self) -> &StoredTensor {
        &self.numbers
    }

    /// The number of bytes of the numbers for these rows of the matrix.
    pub(super) fn stored_bytes(&self, rows: &Range<usize>) -> u64 {
        (self.rows_of_blocks(rows).len() * self.across * self.format.size()) as u64
    }

    /// Reads the numbers for these rows of the matrix: rows of blocks x blocks across.
    pub(super) fn read(&self, rows: &Range<usize>, scratch: &mut Vec<u8>, what: &str) -> Result<Vec<f32>> {
        let Range { start, end } = self.rows_of_blocks(rows);
        self.numbers.read_finite(self.format, start * self.across..end * self.across, scratch, what)
    }
}

/// The shapes that a tensor with one number for each block may have: two dimensions, or fewer if one is 1.
fn shapes(features: [usize; 2], block: [usize; 2]) -> Vec<Vec<usize>> {
    match blocks(features, block) {
        [1, 1] => vec![vec![], vec![1], vec![1, 1]],
        [down, 1] => vec![vec![down], vec![down, 1]],
        [down, across] => vec![vec![down, across]],
    }
}

/// The size of the blocks that follows from the shapes.
fn derive_block(
    module: &QuantisedModule<'_>,
    scales: &StoredTensor,
    features: [usize; 2],
) -> Result<[usize; 2]> {
    let counts = match *scales.shape() {
        [] => [1, 1],
        [down] => [down, 1],
        [down, across] => [down, across],
        _ => [0, 0],
    };
    let sizes = [0, 1].map(|axis| block_size(features[axis], counts[axis]));
    match sizes {
        [Some(rows), Some(columns)] => Ok([rows, columns]),
        _ => Err(scales.refusal(format!(
            "has the shape {:?}, which does not say over which blocks of the {} x {} weights its scales reach; \
             expected one scale, one for each row, one for each group of columns, or blocks whose sides are \
             powers of two or divide the weights evenly, stated in {} where both are possible",
            scales.shape(),
            features[0],
            features[1],
            module.config.source
        ))),
    }
}

/// The length of a block if `count` blocks cover `size`, unless several lengths are possible.
fn block_size(size: usize, count: usize) -> Option<usize> {
    if count == 1 || count == size {
        return Some(size / count);
    }
    if count == 0 || count > size {
        return None;
    }
    // At most one power of two makes exactly `count` blocks if that is two or more.
    let power = size.div_ceil(count).next_power_of_two();
    let power = (size.div_ceil(power) == count).then_some(power);
    let even = size.is_multiple_of(count).then_some(size / count);
    match (power, even) {
        (Some(power), Some(even)) => (power == even).then_some(power),
        (power, even) => power.or(even),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn blocks_follow_from_counts_where_they_can() {
        assert_eq!(block_size(4096, 1), Some(4096)); // per tensor
        assert_eq!(block_size(4096, 4096), Some(1)); // per row
        assert_eq!(block_size(4096, 32), Some(128));
        assert_eq!(block_size(576, 5), Some(128)); // the last block is cut off
        assert_eq!(block_size(96, 4), Some(24)); // blocks of 32 would be three
        assert_eq!(block_size(96, 2), None); // 48 or 64
        assert_eq!(block_size(100, 3), None); // 34, 35, ... 49
        for nonsense in [0, 97] {
            assert_eq!(block_size(96, nonsense), None);
        }
    }

    proptest! {
        #[test]
        fn a_block_that_is_found_covers_the_matrix(size in 1_usize..3000, count in 0_usize..3000) {
            if let Some(block) = block_size(size, count) {
                prop_assert_eq!(size.div_ceil(block), count);
            }
        }

        #[test]
        fn blocks_of_a_power_of_two_are_found_or_refused(size in 1_usize..3000, power in 0_u32..10) {
            let block = 1 << power;
            let found = block_size(size, size.div_ceil(block));
            prop_assert!(found.is_none_or(|found| found == block.min(size)), "{found:?}");
        }
    }
}
