//! The tensors of a module in each format, which no other format may have beside its own.

use super::Scheme;

/// The ends of the names of tensors that quantised weights may have, whatever their format is.
#[rustfmt::skip]
const PARTS: [&str; 24] = [
    "qweight", "qzeros", "scales", "g_idx", "biases", "weight_packed", "weight_scale", "weight_scale_inv", "scale",
    "qscale_weight", "weight_scale_2", "weight_zero_point", "weight_shape", "weight_g_idx", "weight_global_scale",
    "SCB", "weight_format", "weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map",
    "weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4", "weight",
];

/// Whether the end of a tensor's name is that of a part of quantised weights.
pub(crate) fn is_part(ending: &str) -> bool {
    PARTS.contains(&ending)
}

/// The parts that weights of this format have, or weights that are not quantised. NVFP4 has others where its codes are
/// under `weight_packed`.
#[rustfmt::skip]
pub(super) fn parts_of(scheme: Option<Scheme>, is_packed: bool) -> &'static [&'static str] {
    match scheme {
        // Beside floating-point weights a tensor `scale` need not mean quantisation.
        None => &["weight", "scale"],
        Some(Scheme::Fp8E4m3 | Scheme::Fp8E5m2) => {
            &["weight", "weight_scale_inv", "weight_scale", "scale", "qscale_weight", "weight_zero_point"]
        }
        Some(Scheme::Int8) => &["weight", "weight_scale", "weight_zero_point"],
        Some(Scheme::PackedInteger { .. }) => {
            &["weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"]
        }
        Some(Scheme::Nvfp4) if is_packed => &["weight_packed", "weight_scale", "weight_global_scale"],
        Some(Scheme::Nvfp4) => &["weight", "weight_scale", "weight_scale_2"],
        Some(Scheme::Mxfp4) => &["weight_packed", "weight_scale"],
        Some(Scheme::BitsAndBytesInt8) => &["weight", "SCB", "weight_format"],
        Some(Scheme::Nf4 | Scheme::Fp4) => &[
            "weight", "weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map",
            "weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4",
        ],
        Some(Scheme::Gptq { .. }) => &["qweight", "qzeros", "scales", "g_idx"],
        Some(Scheme::Awq) => &["qweight", "qzeros", "scales"],
        Some(Scheme::Mlx { .. }) => &["weight", "scales", "biases"],
    }
}
