//! Opens 4-bit floats with 8-bit scales: NVFP4 by compressed-tensors and by Model Optimizer, and MXFP4.

use safetensors::Dtype;

use super::block_grid::BlockGrid;
use super::compressed_weights::{CodeKind, stated_blocks};
use super::method::Method;
use super::row_major::{CodePacking, RowMajorMatrix};
use super::tensor::StoredTensor;
use super::{QuantisedModule, Scheme};
use crate::error::Result;

/// The columns that share a scale.
const NVFP4_GROUP: usize = 16;
const MXFP4_GROUP: usize = 32;

/// Opens the module whose codes are `weight_packed`, U8 [out, in / 2], as compressed-tensors writes it.
pub(super) fn open(module: &QuantisedModule<'_>, codes: StoredTensor) -> Result<(Scheme, RowMajorMatrix)> {
    let features = features(&codes)?;
    let global = module.tensor("weight_global_scale");
    let (scheme, group) = match global {
        Some(_) => (Scheme::Nvfp4, NVFP4_GROUP),
        None => (Scheme::Mxfp4, MXFP4_GROUP),
    };
    let stated = match &module.config.method {
        Method::Unstated => vec![[1, group]],
        Method::CompressedTensors(groups) => {
            stated_blocks(groups, features, |group| (group.num_bits, group.kind) == (4, CodeKind::Float))
        }
        _ => Vec::new(),
    };
    if stated.is_empty() {
        return Err(module.contradiction(scheme));
    }
    let scales = module.require("weight_scale")?;
    let Some(global) = global else {
        if scales.dtype() != Dtype::F8_E8M0 {
            scales.check_dtype(Dtype::U8)?;
        }
        let scales = BlockGrid::of_scales(module, scales, features, Some(&stated))?;
        return Ok((scheme, RowMajorMatrix::new(codes, CodePacking::E2m1, features, scales)));
    };
    scales.check_dtype(Dtype::F8_E4M3)?;
    let scales = BlockGrid::of_scales(module, scales, features, Some(&stated))?;
    global.check(Dtype::F32, &[1], "one for the whole tensor")?;
    let divisor = global.read_scales(0..1, &mut Vec::new())?[0];
    if divisor == 0.0 {
        return Err(global.refusal("is 0, by which nothing can be divided"));
    }
    let matrix = RowMajorMatrix::new(codes, CodePacking::E2m1, features, scales);
    Ok((scheme, RowMajorMatrix { divisor, ..matrix }))
}

/// Opens the module whose codes are `weight`, U8 [out, in / 2], with `factor` for all scales, as Model Optimizer writes
/// it.
pub(super) fn open_model_optimizer(
    module: &QuantisedModule<'_>,
    codes: StoredTensor,
    factor: &StoredTensor,
) -> Result<(Scheme, RowMajorMatrix)> {
    if !matches!(module.config.method, Method::ModelOpt | Method::Unstated) {
        return Err(module.contradiction(Scheme::Nvfp4));
    }
    codes.check_dtype(Dtype::U8)?;
    let features = features(&codes)?;
    let scales = module.require("weight_scale")?;
    scales.check_dtype(Dtype::F8_E4M3)?;
    let scales = BlockGrid::of_scales(module, scales, features, Some(&[[1, NVFP4_GROUP]]))?;
    factor.check_dtype(Dtype::F32)?;
    if factor.shape() != [1] {
        factor.check_shape(&[], "one for the whole tensor")?;
    }
    let factor = factor.read_scales(0..1, &mut Vec::new())?[0];
    let matrix = RowMajorMatrix::new(codes, CodePacking::E2m1, features, scales);
    Ok((Scheme::Nvfp4, RowMajorMatrix { factor, ..matrix }))
}

/// The out and in features of weights of which a byte holds two codes.
fn features(codes: &StoredTensor) -> Result<[usize; 2]> {
    let [out, bytes] = codes.matrix()?;
    Ok([out, bytes * 2])
}
