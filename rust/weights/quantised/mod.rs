//! Modules whose weights are stored as codes and scales, read as the weights that they stand for.
//!
//! What a module's tensors are is decided by the tensors; what `quantization_config` in `config.json` says has
//! to agree. Nothing is believed that shapes can contradict, and nothing is read but the rows asked for, with
//! their scales.

mod awq;
mod columns;
mod config;
mod eight_bit;
mod field;
mod four_bit;
mod gptq;
mod grid;
mod number;
mod nvfp4;
mod packed;
mod rows;
mod stored;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value};

use self::config::{Config, Method};
use self::stored::Stored;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result, quote};
use crate::number_format::Dtype;
use crate::weights::WeightMatrix;

/// How the weights of a module are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Scheme {
    /// 8-bit floats with 4 exponent bits; a scale for each block, row or tensor.
    Fp8E4m3,
    /// 8-bit floats with 5 exponent bits; a scale for each block, row or tensor.
    Fp8E5m2,
    /// compressed-tensors' 8-bit integers.
    Int8,
    /// compressed-tensors' packed integers.
    PackedInteger {
        /// Bits of a weight.
        bits: usize,
    },
    /// compressed-tensors' 4-bit floats with 8-bit scales.
    Nvfp4,
    /// bitsandbytes' 8-bit integers.
    BitsAndBytesInt8,
    /// bitsandbytes' 4-bit codes, spaced for normal weights.
    Nf4,
    /// bitsandbytes' 4-bit floats.
    Fp4,
    /// GPTQ's packed integers.
    Gptq {
        /// Bits of a weight.
        bits: usize,
    },
    /// AWQ's 4-bit integers. AWQ also moves factors between the columns of weights and what is before them in the
    /// model, so that they differ from those of an unquantised model by more than rounding.
    Awq,
}

impl fmt::Display for Scheme {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Scheme::Fp8E4m3 => formatter.write_str("FP8 (E4M3)"),
            Scheme::Fp8E5m2 => formatter.write_str("FP8 (E5M2)"),
            Scheme::Int8 => formatter.write_str("compressed-tensors int8"),
            Scheme::PackedInteger { bits } => write!(formatter, "compressed-tensors int{bits}"),
            Scheme::Nvfp4 => formatter.write_str("NVFP4"),
            Scheme::BitsAndBytesInt8 => formatter.write_str("bitsandbytes int8"),
            Scheme::Nf4 => formatter.write_str("bitsandbytes nf4"),
            Scheme::Fp4 => formatter.write_str("bitsandbytes fp4"),
            Scheme::Gptq { bits } => write!(formatter, "GPTQ int{bits}"),
            Scheme::Awq => formatter.write_str("AWQ int4, with columns rescaled"),
        }
    }
}

/// A quantised module, opened.
#[derive(Debug)]
pub struct Quantised {
    /// How its weights are stored.
    pub scheme: Scheme,
    /// Its weights, dequantised in `F32`.
    pub weights: Box<dyn WeightMatrix>,
}

/// What is quantised in a checkpoint.
#[derive(Debug)]
pub struct Quantisation {
    checkpoint: Arc<Checkpoint>,
    config: Config,
}

/// Endings of the tensors of quantisers that are not read, in modules that have no `weight`.
const UNSUPPORTED: [(&str, &str); 9] = [
    ("B", "Marlin"),
    ("Qidxs", "QuIP#"),
    ("W_q", "HQQ"),
    ("_weight_qdata", "torchao"),
    ("centroids.weight", "VPTQ"),
    ("codebooks", "AQLM"),
    ("dense_weights", "SpQR"),
    ("trellis", "EXL3"),
    ("weight._data", "quanto"),
];

/// Endings of the scales of 8-bit floats, by who wrote them.
const FP8_SCALES: [&str; 4] = ["weight_scale_inv", "weight_scale", "scale", "qscale_weight"];

impl Quantisation {
    /// What `config`, the content of `config.json`, says of the quantisation of this checkpoint.
    ///
    /// # Errors
    ///
    /// [`Error::Model`] if it makes no sense. A method that is not read is no error until a module that it
    /// quantised is opened.
    pub fn of(checkpoint: &Arc<Checkpoint>, config: &Map<String, Value>) -> Result<Self> {
        let read = Config::read(checkpoint.path(), config)?;
        Ok(Self { checkpoint: Arc::clone(checkpoint), config: read })
    }

    /// The modules that have no plain weights, by the name that stands before `.weight` in a plain checkpoint.
    ///
    /// Only names and formats are looked at, so this is cheap however many tensors there are.
    pub fn modules(&self) -> BTreeSet<&str> {
        let endings = ["qweight", "weight_packed", "weight.absmax"].into_iter();
        let endings: Vec<String> =
            endings.chain(UNSUPPORTED.map(|(ending, _)| ending)).map(|ending| format!(".{ending}")).collect();
        let mut modules = BTreeSet::new();
        for (name, tensor) in self.checkpoint.tensors() {
            modules.extend(match name.strip_suffix(".weight") {
                Some(module) if Dtype::from_stored(tensor.dtype).is_none() => Some(module),
                _ => endings.iter().find_map(|ending| name.strip_suffix(&**ending)),
            });
        }
        modules
    }

    /// The weights of a module, such as `model.layers.0.self_attn.q_proj`; `None` if they are plain, or if there
    /// is no such module.
    ///
    /// Of the weights nothing is read, nor of what grows with them.
    ///
    /// # Errors
    ///
    /// [`Error::Model`] if the module is quantised by a method that is not read, or in another way than the
    /// configuration says; [`Error::Checkpoint`] if its tensors do not fit together; [`Error::Io`].
    pub fn open(&self, module: &str) -> Result<Option<Quantised>> {
        let module = Module { checkpoint: &self.checkpoint, config: &self.config, name: module };
        let opened = module.open()?;
        if opened.is_some() && self.config.skipped.iter().any(|skipped| skipped == module.name) {
            return Err(module.refuse(format!(
                "the module {} is quantised, but quantization_config in config.json lists it among those that are not",
                quote(module.name)
            )));
        }
        Ok(opened)
    }
}

/// A module of a checkpoint, about to be opened.
struct Module<'a> {
    checkpoint: &'a Arc<Checkpoint>,
    config: &'a Config,
    name: &'a str,
}

impl Module<'_> {
    fn open(&self) -> Result<Option<Quantised>> {
        let weight = self.part("weight");
        if let Some(absmax) = self.part("weight.absmax") {
            self.check_method()?;
            return quantised(four_bit::open(self, self.require("weight")?, absmax)?);
        }
        if let Some(weight) = weight {
            return self.open_weight(weight);
        }
        if let Some(codes) = self.part("qweight") {
            return match &self.config.method {
                Method::Gptq(config) => quantised(gptq::open(self, codes, config)?),
                Method::Awq(config) => quantised(awq::open(self, codes, config)?),
                Method::Unstated => Err(self.unsupported(
                    "is packed as by GPTQ or AWQ, but config.json has no quantization_config that says which",
                )),
                Method::Other(_) => self.check_method().map(|()| None),
                _ => Err(self.contradiction_of("tensors of GPTQ or AWQ")),
            };
        }
        if let Some(codes) = self.part("weight_packed") {
            self.check_method()?;
            return match codes.dtype() {
                safetensors::Dtype::U8 => quantised(nvfp4::open(self, codes)?),
                _ => quantised(packed::open(self, codes)?),
            };
        }
        match UNSUPPORTED.iter().find(|(ending, _)| self.part(ending).is_some()) {
            Some((_, by)) => Err(self.unsupported(format!("is quantised by {by}"))),
            None => Ok(None),
        }
    }

    fn open_weight(&self, weight: Stored) -> Result<Option<Quantised>> {
        let rounded_scales = self.part("SCB");
        if Dtype::from_stored(weight.dtype()).is_some() {
            let scales = ["weight_scale_inv", "weight_scale", "qscale_weight"];
            let stray = rounded_scales.or_else(|| scales.iter().find_map(|scales| self.part(scales)));
            return match stray {
                None => Ok(None),
                Some(_) if matches!(self.config.method, Method::Other(_)) => {
                    self.check_method().map(|()| None)
                }
                Some(scales) => Err(scales.refuse(format!(
                    "holds the scales of quantised weights, but the weights beside it are stored as {}",
                    weight.dtype()
                ))),
            };
        }
        self.check_method()?;
        match (weight.dtype(), rounded_scales) {
            (safetensors::Dtype::I8, Some(scales)) => {
                quantised(eight_bit::bitsandbytes(self, weight, scales)?)
            }
            (safetensors::Dtype::I8, None) => quantised(eight_bit::scaled(self, weight, &["weight_scale"])?),
            (safetensors::Dtype::F8_E4M3 | safetensors::Dtype::F8_E5M2, _) => {
                quantised(eight_bit::scaled(self, weight, &FP8_SCALES)?)
            }
            (dtype, _) => Err(self.unsupported(format!("is stored as {dtype}"))),
        }
    }

    /// Refuses a module, known not to be plain, if the method that it was quantised by is not read.
    fn check_method(&self) -> Result<()> {
        match &self.config.method {
            Method::Other(name) => Err(self.unsupported(format!(
                "is quantised by {} (quantization_config in config.json)",
                quote(name)
            ))),
            _ => Ok(()),
        }
    }

    /// The tensor of the module whose name ends so.
    fn part(&self, ending: &str) -> Option<Stored> {
        Stored::find(self.checkpoint, format!("{}.{ending}", self.name))
    }

    /// The same of a tensor that there has to be.
    fn require(&self, ending: &str) -> Result<Stored> {
        self.part(ending).ok_or_else(|| {
            let problem = format!("tensor {} is missing from a quantised module", self.quote(ending));
            Error::checkpoint(self.checkpoint.path(), problem)
        })
    }

    fn quote(&self, ending: &str) -> String {
        quote(&format!("{}.{ending}", self.name))
    }

    fn refuse(&self, problem: String) -> Error {
        Error::model(self.checkpoint.path(), problem)
    }

    /// The refusal of a module that is stored in a way that is not read.
    fn unsupported(&self, how: impl AsRef<str>) -> Error {
        self.refuse(format!(
            "the module {} {}; expected weights stored as F16, BF16, F32 or F64, or quantised as FP8, by \
             compressed-tensors (int8, packed integers, NVFP4), bitsandbytes, GPTQ or AWQ. Other weights have to be \
             dequantised first",
            quote(self.name),
            how.as_ref()
        ))
    }

    fn contradiction(&self, scheme: Scheme) -> Error {
        self.contradiction_of(&scheme.to_string())
    }

    /// The refusal of a module that holds something other than the configuration says.
    fn contradiction_of(&self, found: &str) -> Error {
        self.refuse(format!(
            "the module {} holds {found}, which quantization_config in config.json ({}) does not describe",
            quote(self.name),
            self.config.method.name()
        ))
    }
}

fn quantised((scheme, weights): (Scheme, impl WeightMatrix + 'static)) -> Result<Option<Quantised>> {
    Ok(Some(Quantised { scheme, weights: Box::new(weights) }))
}

/// Writes weights as they are to be read.
fn store(weights: &[f32], into: &mut [u8]) {
    for (weight, into) in weights.iter().zip(into.as_chunks_mut::<4>().0) {
        *into = weight.to_le_bytes();
    }
}
