//! Opens compressed-tensors' `nvfp4-pack-quantized`: 4-bit floats, an 8-bit scale for each 16, one divisor for all.

use safetensors::Dtype;

use super::block_grid::BlockGrid;
use super::config::{CodeKind, Method, stated_blocks};
use super::row_major::{CodePacking, RowMajorMatrix};
use super::tensor::StoredTensor;
use super::{QuantisedModule, Scheme};
use crate::error::Result;

/// Opens the module whose codes are `codes`, U8 [out, in / 2].
pub(super) fn open(module: &QuantisedModule<'_>, codes: StoredTensor) -> Result<(Scheme, RowMajorMatrix)> {
    let [out, bytes] = codes.matrix()?;
    let Some(global) = module.tensor("weight_global_scale") else {
        return Err(module.unsupported("holds 4-bit floats without a `weight_global_scale` (MXFP4)"));
    };
    let scales = module.require("weight_scale")?;
    scales.expect_dtype(Dtype::F8_E4M3)?;
    let features = [out, bytes * 2];
    let stated = match &module.config.method {
        Method::Unstated => vec![[1, 16]],
        Method::CompressedTensors(groups) => {
            stated_blocks(groups, features, |group| (group.num_bits, group.kind) == (4, CodeKind::Float))
        }
        _ => Vec::new(),
    };
    if stated.is_empty() {
        return Err(module.contradiction(Scheme::Nvfp4));
    }
    let scales = BlockGrid::of_scales(scales, features, Some(&stated))?;
    global.expect(Dtype::F32, &[1], "one for the whole tensor")?;
    let divisor = global.read_scales(0..1, &mut Vec::new())?[0];
    if divisor == 0.0 {
        return Err(global.refuse("is 0, by which nothing can be divided"));
    }
    let matrix = RowMajorMatrix::new(codes, CodePacking::E2m1, features, scales);
    Ok((Scheme::Nvfp4, RowMajorMatrix { divisor, ..matrix }))
}
