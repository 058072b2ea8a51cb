//! Opens AWQ packed for its GEMM kernel: 4-bit integers, eight output features in a word, out of order.

use safetensors::Dtype;

use super::input_groups::InputGroups;
use super::input_major::{InputMajorMatrix, WordPacking};
use super::method::AwqConfig;
use super::tensor::StoredTensor;
use super::{QuantisedModule, Scheme};
use crate::error::Result;

const CODES_IN_WORD: usize = 8;

/// Opens the module whose codes are `codes`, I32 [in, words].
pub(super) fn open(
    module: &QuantisedModule<'_>,
    codes: StoredTensor,
    config: &AwqConfig,
) -> Result<(Scheme, InputMajorMatrix)> {
    let format = config.format();
    if format != "gemm" {
        return Err(module.unsupported(format!("is packed in the format `{format}` of AWQ")));
    }
    if config.bits != 4 {
        return Err(module.unsupported(format!("is quantised by AWQ to {} bits", config.bits)));
    }
    codes.check_dtype(Dtype::I32)?;
    let [inputs, packed] = codes.matrix()?;
    let features = [packed * CODES_IN_WORD, inputs];
    let groups = InputGroups::new(module.require("scales")?, features, Some(config.group_size), None)?;
    let zero_points = module.require("qzeros")?;
    let reason = format!("{} groups, packed like the codes", groups.count);
    zero_points.check(Dtype::I32, &[groups.count, packed], &reason)?;
    Ok((Scheme::Awq, InputMajorMatrix { codes, zero_points, groups, packing: WordPacking::Awq, features }))
}
