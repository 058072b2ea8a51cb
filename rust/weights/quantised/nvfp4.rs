//! compressed-tensors' `nvfp4-pack-quantized`: 4-bit floats, an 8-bit scale for 16 of them, one divisor for all.

use safetensors::Dtype;

use super::config::{Kind, Method, stated_blocks};
use super::grid::Grid;
use super::number::Number;
use super::rows::{Code, Rows, ZeroPoints};
use super::stored::Stored;
use super::{Module, Scheme};
use crate::error::Result;

/// The module whose codes are `codes`, U8 [out, in / 2].
pub(super) fn open(module: &Module<'_>, codes: Stored) -> Result<(Scheme, Rows)> {
    let [out, bytes] = codes.matrix()?;
    let Some(global) = module.part("weight_global_scale") else {
        return Err(module.unsupported("holds 4-bit floats without a `weight_global_scale` (MXFP4)"));
    };
    let scales = module.require("weight_scale")?;
    scales.expect_dtype(Dtype::F8_E4M3)?;
    let features = [out, bytes * 2];
    let stated = match &module.config.method {
        Method::Unstated => vec![[1, 16]],
        Method::CompressedTensors(groups) => {
            stated_blocks(groups, features, |group| (group.num_bits, group.kind) == (4, Kind::Float))
        }
        _ => Vec::new(),
    };
    if stated.is_empty() {
        return Err(module.contradiction(Scheme::Nvfp4));
    }
    let scales = Grid::of_scales(scales, features, Some(&stated))?;
    global.expect_dtype(Dtype::F32)?;
    global.expect_shape(&[1], "one for the whole tensor")?;
    let divisor = global.read_finite(Number::F32, 0..1, &mut Vec::new(), "scale")?[0];
    if divisor == 0.0 {
        return Err(global.refuse("is 0, by which nothing can be divided"));
    }
    let zero_points = ZeroPoints::None;
    let rows = Rows { codes, code: Code::E2m1, features, scales, divisor, zero_points, order: None };
    Ok((Scheme::Nvfp4, rows))
}
