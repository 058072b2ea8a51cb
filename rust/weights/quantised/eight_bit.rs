//! A byte for each weight: FP8, and the 8-bit integers of compressed-tensors and bitsandbytes.

use safetensors::Dtype;

use super::config::{Kind, Method, stated_blocks};
use super::grid::Grid;
use super::number::Number;
use super::rows::{Code, Rows, ZeroPoints};
use super::stored::Stored;
use super::{Module, Scheme};
use crate::error::Result;

/// What bitsandbytes multiplies its scales by to get weights.
const BITSANDBYTES_DIVISOR: f32 = 127.0;

/// FP8 or 8-bit integers with scales beside them. Scales multiply, also those called `weight_scale_inv`.
pub(super) fn scaled(module: &Module<'_>, weight: Stored, names: &[&str]) -> Result<(Scheme, Rows)> {
    let (scheme, kind, format) = match weight.dtype() {
        Dtype::F8_E4M3 => (Scheme::Fp8E4m3, Kind::Float, Number::E4m3),
        Dtype::F8_E5M2 => (Scheme::Fp8E5m2, Kind::Float, Number::E5m2),
        _ => (Scheme::Int8, Kind::Int, Number::I8),
    };
    let features = weight.matrix()?;
    let scales = match *names.iter().filter_map(|name| module.part(name)).collect::<Vec<_>>() {
        [ref scales] => scales.clone(),
        [] => {
            return Err(module.unsupported(format!(
                "is stored as {} without a {} that says how it is scaled",
                weight.dtype(),
                names.iter().map(|name| module.quote(name)).collect::<Vec<_>>().join(" or ")
            )));
        }
        [ref first, ref second, ..] => {
            return Err(
                second.refuse(format!("is a second set of scales beside that of shape {:?}", first.shape()))
            );
        }
    };
    let zero_point = module.part("weight_zero_point");
    let stated = match &module.config.method {
        Method::Unstated => None,
        Method::Fp8(fp8) if kind == Kind::Float => fp8.weight_block_size.map(|block| vec![block]),
        Method::FbgemmFp8 if kind == Kind::Float => Some(vec![[1, features[1]]]),
        Method::CompressedTensors(groups) => Some(stated_blocks(groups, features, |group| {
            let of_this_kind = (group.num_bits, group.kind) == (8, kind);
            // Zeros are stored by some versions although the scheme is symmetric.
            of_this_kind && (group.symmetric || zero_point.is_some())
        })),
        _ => return Err(module.contradiction(scheme)),
    };
    if stated.as_ref().is_some_and(Vec::is_empty) {
        return Err(module.contradiction(scheme));
    }
    let scales = Grid::of_scales(scales, features, stated.as_deref())?;
    let zero_points = match zero_point {
        None => ZeroPoints::None,
        Some(zero_point) => ZeroPoints::Plain(scales.of_zero_points(zero_point)?),
    };
    let code = Code::Number(format);
    Ok((scheme, Rows { codes: weight, code, features, scales, divisor: 1.0, zero_points, order: None }))
}

/// bitsandbytes' LLM.int8(): integers, and the largest absolute value of each row, which 127 stands for.
pub(super) fn bitsandbytes(module: &Module<'_>, weight: Stored, scales: Stored) -> Result<(Scheme, Rows)> {
    match &module.config.method {
        Method::Unstated => {}
        Method::BitsAndBytes(config) if config.load_in_8bit || !config.load_in_4bit => {}
        _ => return Err(module.contradiction(Scheme::BitsAndBytesInt8)),
    }
    weight.expect_dtype(Dtype::I8)?;
    let features = weight.matrix()?;
    scales.expect_dtype(Dtype::F32)?;
    if let Some(format) = module.part("weight_format") {
        let code = format.read_small()?;
        if code != [0] {
            return Err(format.refuse(format!(
                "is {code:?}; expected [0], rows: the tiled orders of old versions of bitsandbytes are not read. \
                 Save the model again with a newer one"
            )));
        }
    }
    let scales = Grid::of_scales(scales, features, Some(&[[1, features[1]]]))?;
    let code = Code::Number(Number::I8);
    let zero_points = ZeroPoints::None;
    let rows = Rows {
        codes: weight,
        code,
        features,
        scales,
        divisor: BITSANDBYTES_DIVISOR,
        zero_points,
        order: None,
    };
    Ok((Scheme::BitsAndBytesInt8, rows))
}
