//! Adds the scaled changes of rows to those of the base.

use crate::number_format::Dtype;
use crate::scan::StoredNumbers;

/// `base + sum of scale (tuned - base)`, stored as `dtype`.
///
/// The numbers of one tuned model with scale 1 are taken over as they are; others are computed as torch does, in
/// float32, or in float64 where one of the numbers is stored so.
pub(super) fn combine(base: &StoredNumbers, changes: &[(StoredNumbers, f64)], dtype: Dtype) -> Vec<u8> {
    if let [(tuned, scale)] = changes
        && *scale == 1.0
    {
        return if tuned.dtype == dtype { tuned.bytes.clone() } else { encode(&tuned.decode(), dtype) };
    }
    let is_double = base.dtype == Dtype::F64 || changes.iter().any(|(tuned, _)| tuned.dtype == Dtype::F64);
    let own = base.decode();
    let mut sums = own.clone();
    for (tuned, scale) in changes {
        for ((sum, own), tuned) in sums.iter_mut().zip(&own).zip(tuned.decode()) {
            *sum = match is_double {
                true => *sum + scale * (tuned - own),
                false => f64::from(*sum as f32 + *scale as f32 * (tuned as f32 - *own as f32)),
            };
        }
    }
    encode(&sums, dtype)
}

fn encode(numbers: &[f64], dtype: Dtype) -> Vec<u8> {
    let mut bytes = vec![0; numbers.len() * dtype.size()];
    dtype.encode(numbers, &mut bytes);
    bytes
}
