//! Opens weights of one byte each: FP8, and the 8-bit integers of compressed-tensors and bitsandbytes.

use safetensors::Dtype;

use super::block_grid::BlockGrid;
use super::compressed_weights::{CodeKind, stated_blocks};
use super::method::Method;
use super::row_major::{CodePacking, RowMajorMatrix, ZeroPoints};
use super::tensor::StoredTensor;
use super::{QuantisedModule, Scheme};
use crate::error::Result;
use crate::number_format::CodeFormat;

/// The code whose weight is the scale of its row.
const BITSANDBYTES_DIVISOR: f32 = 127.0;

/// Opens FP8 or 8-bit integers with scales beside them. Scales are factors, `weight_scale_inv` as well.
pub(super) fn open_scaled(
    module: &QuantisedModule<'_>,
    weight: StoredTensor,
    names: &[&str],
) -> Result<(Scheme, RowMajorMatrix)> {
    let (scheme, kind, format) = match weight.dtype() {
        Dtype::F8_E4M3 => (Scheme::Fp8E4m3, CodeKind::Float, CodeFormat::E4m3),
        Dtype::F8_E5M2 => (Scheme::Fp8E5m2, CodeKind::Float, CodeFormat::E5m2),
        _ => (Scheme::Int8, CodeKind::Int, CodeFormat::I8),
    };
    let features = weight.matrix()?;
    let mut found = names.iter().filter_map(|name| module.tensor(name));
    let Some(scales) = found.next() else {
        return Err(module.unsupported(format!(
            "is stored as {} without a {} that says how it is scaled",
            weight.dtype(),
            names.iter().map(|name| module.quote(name)).collect::<Vec<_>>().join(" or ")
        )));
    };
    if let Some(second) = found.next() {
        let problem = format!("is a second set of scales beside that of shape {:?}", scales.shape());
        return Err(second.refusal(problem));
    }
    let zero_point = module.tensor("weight_zero_point");
    let stated = match &module.config.method {
        Method::Unstated => None,
        Method::ModelOpt | Method::QuarkFp8 if kind == CodeKind::Float => None,
        Method::Fp8(fp8) if kind == CodeKind::Float => fp8.weight_block_size.map(|block| vec![block]),
        Method::FbgemmFp8 if kind == CodeKind::Float => Some(vec![[1, features[1]]]),
        Method::CompressedTensors(groups) => Some(stated_blocks(groups, features, |group| {
            let is_of_kind = (group.num_bits, group.kind) == (8, kind);
            // Some versions store zero points of 0 although the scheme is symmetric.
            is_of_kind && (group.symmetric || zero_point.is_some())
        })),
        _ => return Err(module.contradiction(scheme)),
    };
    if stated.as_ref().is_some_and(Vec::is_empty) {
        return Err(module.contradiction(scheme));
    }
    let scales = BlockGrid::of_scales(module, scales, features, stated.as_deref())?;
    let zero_points = match zero_point {
        None => ZeroPoints::None,
        Some(zero_point) => ZeroPoints::Unpacked(scales.of_zero_points(zero_point)?),
    };
    let matrix = RowMajorMatrix::new(weight, CodePacking::Whole(format), features, scales);
    Ok((scheme, RowMajorMatrix { zero_points, ..matrix }))
}

/// Opens the integers of bitsandbytes' LLM.int8(), whose scales are the largest absolute values of the rows.
pub(super) fn open_bitsandbytes(
    module: &QuantisedModule<'_>,
    weight: StoredTensor,
    scales: StoredTensor,
) -> Result<(Scheme, RowMajorMatrix)> {
    match &module.config.method {
        Method::Unstated => {}
        Method::BitsAndBytes(config) if config.load_in_8bit || !config.load_in_4bit => {}
        _ => return Err(module.contradiction(Scheme::BitsAndBytesInt8)),
    }
    weight.check_dtype(Dtype::I8)?;
    let features = weight.matrix()?;
    scales.check_dtype(Dtype::F32)?;
    if let Some(format) = module.tensor("weight_format") {
        let code = format.read_small()?;
        if code != [0] {
            return Err(format.refusal(format!(
                "is {code:?}; expected [0], rows: the tiled orders of old versions of bitsandbytes are not read. \
                 Save the model again with a newer one"
            )));
        }
    }
    let scales = BlockGrid::of_scales(module, scales, features, Some(&[[1, features[1]]]))?;
    let matrix = RowMajorMatrix::new(weight, CodePacking::Whole(CodeFormat::I8), features, scales);
    Ok((Scheme::BitsAndBytesInt8, RowMajorMatrix { divisor: BITSANDBYTES_DIVISOR, ..matrix }))
}
