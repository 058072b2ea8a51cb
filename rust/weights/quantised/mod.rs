//! Reads quantised weights, which are stored as codes and scales.
//!
//! # How quantised modules are read
//!
//! The names and formats of a module's tensors decide which format it has; the section on quantisation in the model's
//! configuration has to agree. Opening a module checks the shapes of its tensors. Reading rows reads their codes and
//! scales only, and computes `(code - zero point) * scale`, with the variations of each format.
//!
//! A *method* is what a configuration says, a *scheme* how the weights of a module are stored.
//!
//! - `config` finds the settings, `method` and `compressed_weights` read them. `scheme` names the formats, and `parts`
//!   lists the tensors of each.
//! - `eight_bit`, `packed`, `e2m1` and `mlx` open formats that `row_major` reads, whose codes lie row after row, with
//!   scales in the blocks of a `block_grid`.
//! - `gptq` and `awq` open formats that `input_major` reads, whose codes are stored [in, out], with scales for
//!   `input_groups`.
//! - `four_bit` opens and reads formats whose weights are flattened.
//!
//! A new format needs:
//!
//! - a variant of [`Scheme`] with its name (`scheme`), and its tensors (`parts`, in both lists);
//! - a file whose `open` checks the tensors and returns a matrix of `row_major` or `input_major`, and a call of `open`
//!   in `QuantisedModule`;
//! - its method in `method`, unless a known one writes it;
//! - the end of the name of its tensor of codes in [`Quantisation::modules`], unless that is `weight`;
//! - its mention in the message of `unsupported`.

mod awq;
mod bit_field;
mod block_grid;
mod compressed_weights;
mod config;
mod e2m1;
mod eight_bit;
mod four_bit;
mod gptq;
mod input_groups;
mod input_major;
mod method;
mod mlx;
mod packed;
mod parts;
mod row_major;
mod scheme;
mod tensor;

use std::sync::Arc;

use serde_json::{Map, Value};

use self::config::QuantisationConfig;
use self::method::Method;
pub(crate) use self::parts::is_part;
use self::parts::parts_of;
pub use self::scheme::Scheme;
use self::tensor::StoredTensor;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result, quote};
use crate::number_format::Dtype;
use crate::weights::WeightMatrix;

/// The weights of a quantised module.
#[derive(Debug)]
pub struct QuantisedWeights {
    /// How they are stored.
    pub scheme: Scheme,
    /// The weights, dequantised to `F32`.
    pub matrix: Box<dyn WeightMatrix>,
}

/// A checkpoint with the configuration of its quantisation.
#[derive(Debug)]
pub struct Quantisation {
    checkpoint: Arc<Checkpoint>,
    config: QuantisationConfig,
}

/// Ends of tensor names of quantisers that are not read, in modules without `weight`.
#[rustfmt::skip]
const UNSUPPORTED: [(&str, &str); 10] = [
    ("B", "Marlin"), ("Qidxs", "QuIP#"), ("W_q", "HQQ"), ("_weight_qdata", "torchao"), ("centroids.weight", "VPTQ"),
    ("codebooks", "AQLM"), ("dense_weights", "SpQR"), ("q_weight", "EXL2"), ("trellis", "EXL3"),
    ("weight._data", "quanto"),
];

/// Ends of the names of the scales of 8-bit floats, by different writers.
const FP8_SCALES: [&str; 4] = ["weight_scale_inv", "weight_scale", "scale", "qscale_weight"];

impl Quantisation {
    /// Reads the quantisation of this checkpoint from `config`, the model's configuration, or else from the file of its
    /// own in which some quantisers leave their settings.
    ///
    /// # Errors
    ///
    /// [`Error::Model`] if the section on quantisation is malformed. A method that is not read is an error only when a
    /// module is opened.
    pub fn of(checkpoint: &Arc<Checkpoint>, config: &Map<String, Value>) -> Result<Self> {
        let read = QuantisationConfig::read(checkpoint.path(), checkpoint.config_file(), config)?;
        let mut found = Self { checkpoint: Arc::clone(checkpoint), config: read };
        if found.modules().next().is_none() {
            return Ok(found);
        }
        for file in config::FILES {
            if let (Method::Unstated, Some(section)) = (&found.config.method, checkpoint.read_beside(file.0)?)
            {
                found.config = QuantisationConfig::of_file(checkpoint.path(), file, &section)?;
            }
        }
        Ok(found)
    }

    /// The names of the quantised modules. A module is named as its tensor in an unquantised checkpoint, without
    /// `.weight`; it may come several times.
    pub fn modules(&self) -> impl Iterator<Item = &str> {
        let endings = ["qweight", "weight_packed", "weight.absmax"].into_iter();
        let endings: Vec<String> =
            endings.chain(UNSUPPORTED.map(|(ending, _)| ending)).map(|ending| format!(".{ending}")).collect();
        self.checkpoint.tensors().filter_map(move |(name, tensor)| match name.strip_suffix(".weight") {
            Some(module) if Dtype::from_stored(tensor.dtype).is_none() => Some(module),
            _ => endings.iter().find_map(|ending| name.strip_suffix(&**ending)),
        })
    }

    /// Opens a module, such as `model.layers.0.self_attn.q_proj`; `None` if its weights are not quantised, or if there
    /// is no such module. Only tensors of a fixed size are read.
    ///
    /// # Errors
    ///
    /// [`Error::Model`] if the module is quantised by a method that is not read, or contradicts the configuration;
    /// [`Error::Checkpoint`] if its tensors do not fit together; [`Error::Io`].
    pub fn open(&self, module: &str) -> Result<Option<QuantisedWeights>> {
        let module = QuantisedModule { checkpoint: &self.checkpoint, config: &self.config, name: module };
        let opened = module.open()?;
        module.check_parts(opened.as_ref().map(|weights| weights.scheme))?;
        if opened.is_some() && self.config.skipped.contains(module.name) {
            return Err(module.refusal(format!(
                "the module {} is quantised, but {} lists it among those that are not",
                quote(module.name),
                self.config.source
            )));
        }
        Ok(opened)
    }

    /// Refuses tensors of quantised weights in a module whose weights are not quantised.
    ///
    /// # Errors
    ///
    /// [`Error::Checkpoint`] if there are any.
    pub fn check_unquantised(&self, module: &str) -> Result<()> {
        let module = QuantisedModule { checkpoint: &self.checkpoint, config: &self.config, name: module };
        module.check_parts(None)
    }
}

/// A module of a checkpoint that is being opened.
struct QuantisedModule<'a> {
    checkpoint: &'a Arc<Checkpoint>,
    config: &'a QuantisationConfig,
    name: &'a str,
}

impl QuantisedModule<'_> {
    fn open(&self) -> Result<Option<QuantisedWeights>> {
        let weight = self.tensor("weight");
        if let Some(absmax) = self.tensor("weight.absmax") {
            self.check_method()?;
            return quantised(four_bit::open(self, self.require("weight")?, absmax)?);
        }
        if let Some(weight) = weight {
            return self.open_weight(weight);
        }
        if let Some(codes) = self.tensor("qweight") {
            return match &self.config.method {
                Method::Gptq(config) => quantised(gptq::open(self, codes, config)?),
                Method::Awq(config) => quantised(awq::open(self, codes, config)?),
                Method::Unstated => Err(self.unsupported(
                    "is packed as by GPTQ or AWQ, but config.json has no quantization_config that says which, and \
                     there is no quantize_config.json or quant_config.json",
                )),
                Method::Other(_) => self.check_method().map(|()| None),
                _ => Err(self.contradiction_of("tensors of GPTQ or AWQ")),
            };
        }
        if let Some(codes) = self.tensor("weight_packed") {
            self.check_method()?;
            return match codes.dtype() {
                safetensors::Dtype::U8 => quantised(e2m1::open(self, codes)?),
                _ => quantised(packed::open(self, codes)?),
            };
        }
        match UNSUPPORTED.iter().find(|(ending, _)| self.tensor(ending).is_some()) {
            Some((_, by)) => Err(self.unsupported(format!("is quantised by {by}"))),
            None => Ok(None),
        }
    }

    fn open_weight(&self, weight: StoredTensor) -> Result<Option<QuantisedWeights>> {
        let row_scales = self.tensor("SCB");
        if Dtype::from_stored(weight.dtype()).is_some() {
            // Unlike `FP8_SCALES` without "scale": beside floating-point weights that name need not mean quantisation.
            let scales = ["weight_scale_inv", "weight_scale", "qscale_weight"];
            let stray = row_scales.or_else(|| scales.iter().find_map(|scales| self.tensor(scales)));
            return match stray {
                None => Ok(None),
                Some(_) if matches!(self.config.method, Method::Other(_)) => {
                    self.check_method().map(|()| None)
                }
                Some(scales) => Err(scales.refusal(format!(
                    "holds the scales of quantised weights, but the weights beside it are stored as {}",
                    weight.dtype()
                ))),
            };
        }
        self.check_method()?;
        match (weight.dtype(), row_scales) {
            (safetensors::Dtype::I8, Some(scales)) => {
                quantised(eight_bit::open_bitsandbytes(self, weight, scales)?)
            }
            (safetensors::Dtype::I8, None) => {
                quantised(eight_bit::open_scaled(self, weight, &["weight_scale"])?)
            }
            (safetensors::Dtype::F8_E4M3 | safetensors::Dtype::F8_E5M2, _) => {
                quantised(eight_bit::open_scaled(self, weight, &FP8_SCALES)?)
            }
            (safetensors::Dtype::U32, _) => match self.tensor("scales") {
                Some(scales) => quantised(mlx::open(self, weight, scales)?),
                None => Err(self.unsupported("is stored as U32")),
            },
            (safetensors::Dtype::U8, _) => match self.tensor("weight_scale_2") {
                Some(factor) => quantised(e2m1::open_model_optimizer(self, weight, &factor)?),
                None => Err(self.unsupported("is stored as U8")),
            },
            (dtype, _) => Err(self.unsupported(format!("is stored as {dtype}"))),
        }
    }

    /// Refuses tensors of quantised weights in a format that the module does not have.
    fn check_parts(&self, scheme: Option<Scheme>) -> Result<()> {
        let inside = format!("{}.", self.name);
        let mut endings =
            self.checkpoint.tensors_from(&inside).map_while(|(name, _)| name.strip_prefix(&*inside));
        let own = parts_of(scheme, self.tensor("weight_packed").is_some());
        let Some(other) = endings.find(|ending| is_part(ending) && !own.contains(ending)) else {
            return Ok(());
        };
        let format = scheme.map_or("not quantised".to_owned(), |scheme| format!("stored as {scheme}"));
        Err(Error::checkpoint(
            self.checkpoint.path(),
            format!(
                "tensor {} is one of quantised weights, but the weights beside it are {format}, without such a tensor. \
                 If it is not needed, remove it from the file",
                self.quote(other)
            ),
        ))
    }

    /// Refuses a quantised module whose method is not read.
    fn check_method(&self) -> Result<()> {
        match &self.config.method {
            Method::Other(name) => {
                Err(self.unsupported(format!("is quantised by {} ({})", quote(name), self.config.source)))
            }
            _ => Ok(()),
        }
    }

    /// The tensor of the module whose name has this end.
    fn tensor(&self, ending: &str) -> Option<StoredTensor> {
        StoredTensor::find(self.checkpoint, format!("{}.{ending}", self.name))
    }

    /// The tensor of the module whose name has this end, which has to exist.
    fn require(&self, ending: &str) -> Result<StoredTensor> {
        self.tensor(ending).ok_or_else(|| {
            let problem = format!("tensor {} is missing from a quantised module", self.quote(ending));
            Error::checkpoint(self.checkpoint.path(), problem)
        })
    }

    fn quote(&self, ending: &str) -> String {
        quote(&format!("{}.{ending}", self.name))
    }

    fn refusal(&self, problem: String) -> Error {
        Error::model(self.checkpoint.path(), problem)
    }

    /// The error of a module whose storage is not read.
    fn unsupported(&self, how: impl AsRef<str>) -> Error {
        self.refusal(format!(
            "the module {} {}; expected weights stored as F16, BF16, F32 or F64, or quantised as FP8, by \
             compressed-tensors (int8, packed integers, NVFP4, MXFP4), bitsandbytes, GPTQ, AWQ, Model Optimizer \
             (NVFP4) or MLX. Other weights have to be dequantised first",
            quote(self.name),
            how.as_ref()
        ))
    }

    fn contradiction(&self, scheme: Scheme) -> Error {
        self.contradiction_of(&scheme.to_string())
    }

    /// The error of a module whose tensors contradict the configuration.
    fn contradiction_of(&self, found: &str) -> Error {
        self.refusal(format!(
            "the module {} holds {found}, which {} ({}) does not describe",
            quote(self.name),
            self.config.source,
            self.config.method.name()
        ))
    }
}

fn quantised((scheme, matrix): (Scheme, impl WeightMatrix + 'static)) -> Result<Option<QuantisedWeights>> {
    Ok(Some(QuantisedWeights { scheme, matrix: Box::new(matrix) }))
}
