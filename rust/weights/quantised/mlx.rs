//! Opens the integers of MLX: code * scale + bias, with a scale and a bias for each group of columns.

use safetensors::Dtype;

use super::block_grid::BlockGrid;
use super::method::Method;
use super::row_major::{CodePacking, RowMajorMatrix};
use super::tensor::StoredTensor;
use super::{QuantisedModule, Scheme};
use crate::error::Result;

/// Opens the module whose codes are `codes`, U32 [out, in * bits / 32], each row one stream of bits.
pub(super) fn open(
    module: &QuantisedModule<'_>,
    codes: StoredTensor,
    scales: StoredTensor,
) -> Result<(Scheme, RowMajorMatrix)> {
    let Method::Mlx(config) = &module.config.method else {
        return Err(match &module.config.method {
            Method::Unstated => module.unsupported(
                "is packed as by MLX, but config.json has no `quantization` that says with how many bits",
            ),
            _ => module.contradiction_of("tensors of MLX"),
        });
    };
    let settings = config
        .of_module(module.name)
        .map_err(|problem| module.refusal(format!("{}: {problem}", module.config.source)))?;
    if settings.mode() != "affine" {
        return Err(module.unsupported(format!("is quantised by MLX in the mode {}", settings.mode())));
    }
    let (bits, group) = (settings.bits, settings.group_size);
    if !matches!(bits, 2..=6 | 8) || group == 0 {
        return Err(module.unsupported(format!("is quantised by MLX with {bits} bits in groups of {group}")));
    }
    codes.check_dtype(Dtype::U32)?;
    let [out, words] = codes.matrix()?;
    let features = [out, words * 32 / bits];
    let stated = [[1, group]];
    let biases = BlockGrid::of_scales(module, module.require("biases")?, features, Some(&stated))?;
    let scales = BlockGrid::of_scales(module, scales, features, Some(&stated))?;
    let matrix = RowMajorMatrix::new(codes, CodePacking::Unsigned(bits), features, scales);
    Ok((Scheme::Mlx { bits }, RowMajorMatrix { biases: Some(biases), ..matrix }))
}
