//! Opens compressed-tensors' `pack-quantized`: integers of a few bits in 32-bit words, scaled by groups of columns.

use safetensors::Dtype;

use super::bit_field::words;
use super::block_grid::BlockGrid;
use super::compressed_weights::{CodeKind, CompressedWeights, stated_blocks};
use super::method::Method;
use super::row_major::{CodePacking, RowMajorMatrix, ZeroPoints};
use super::tensor::StoredTensor;
use super::{QuantisedModule, Scheme};
use crate::error::Result;

/// Opens the module whose codes are `codes`, I32 [out, words].
pub(super) fn open(module: &QuantisedModule<'_>, codes: StoredTensor) -> Result<(Scheme, RowMajorMatrix)> {
    codes.check_dtype(Dtype::I32)?;
    let [rows, packed_columns] = codes.matrix()?;
    let shape = module.require("weight_shape")?;
    let features = read_shape(&shape, rows, packed_columns)?;
    let scales = module.require("weight_scale")?;
    let zero_points = module.tensor("weight_zero_point");

    // Narrow matrices of different bits may take equally many words. The configuration then decides.
    let possible: Vec<usize> = (1..=8).filter(|bits| words(features[1], *bits) == packed_columns).collect();
    let (bits, stated) = match &module.config.method {
        Method::Unstated => {
            let [bits] = possible[..] else {
                return Err(codes.refusal(format!(
                    "has {packed_columns} words for {} columns, which {possible:?} bits fit; expected one number of \
                     bits, or {} to say which",
                    features[1], module.config.source
                )));
            };
            (bits, None)
        }
        Method::CompressedTensors(groups) => {
            let stated = possible.iter().map(|bits| {
                let expected = (*bits, CodeKind::Int, zero_points.is_none());
                let fits =
                    |group: &CompressedWeights| (group.num_bits, group.kind, group.symmetric) == expected;
                (*bits, stated_blocks(groups, features, fits))
            });
            let mut stated: Vec<_> = stated.filter(|(_, blocks)| !blocks.is_empty()).collect();
            let (Some((bits, blocks)), []) = (stated.pop(), &stated[..]) else {
                return Err(module.contradiction_of(&format!(
                    "packed integers of {possible:?} bits {} zero points",
                    if zero_points.is_some() { "with" } else { "without" }
                )));
            };
            (bits, Some(blocks))
        }
        _ => return Err(module.contradiction_of("packed integers of compressed-tensors")),
    };
    let scales = BlockGrid::of_scales(module, scales, features, stated.as_deref())?;
    let zero_points = match zero_points {
        None => ZeroPoints::None,
        Some(stored) => {
            let shape = [words(features[0], bits), scales.across()];
            stored.check(Dtype::I32, &shape, "packed like the codes, down the rows")?;
            if scales.block()[0] != 1 {
                let problem = "belongs to scales of more than one row; expected one for each row";
                return Err(stored.refusal(problem));
            }
            ZeroPoints::Packed(stored)
        }
    };
    let order = module.tensor("weight_g_idx");
    if let Some(order) = &order {
        order.check(Dtype::I32, &[features[1]], "the input features")?;
    }
    let matrix = RowMajorMatrix::new(codes, CodePacking::Integer(bits), features, scales);
    Ok((Scheme::PackedInteger { bits }, RowMajorMatrix { zero_points, order, ..matrix }))
}

/// Reads the out and in features from `weight_shape`, which have to agree with the shape of the codes.
fn read_shape(shape: &StoredTensor, rows: usize, packed_columns: usize) -> Result<[usize; 2]> {
    shape.check_shape(&[2], "output and input features")?;
    let bytes = shape.read_small()?;
    let sizes: Vec<i64> = match shape.dtype() {
        Dtype::I64 => bytes.as_chunks().0.iter().map(|size| i64::from_le_bytes(*size)).collect(),
        Dtype::I32 => bytes.as_chunks().0.iter().map(|size| i32::from_le_bytes(*size).into()).collect(),
        other => return Err(shape.refusal(format!("should be stored as I64, but is stored as {other}"))),
    };
    let features: Vec<usize> = sizes.iter().filter_map(|size| usize::try_from(*size).ok()).collect();
    match *features {
        // A word holds 32 codes at most.
        [out, inputs] if out == rows && inputs > 0 && inputs <= packed_columns.saturating_mul(32) => {
            Ok([out, inputs])
        }
        _ => Err(shape.refusal(format!(
            "says that the weights have the shape {sizes:?}; expected {rows} rows, and columns that fit \
             {packed_columns} words"
        ))),
    }
}
