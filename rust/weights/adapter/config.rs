//! Reads `adapter_config.json`, the configuration of an adapter of PEFT.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::base_modules::is_outside_attention;
use super::number_by_module::NumberByModule;
use crate::attention::may_be_attention;
use crate::checkpoint::{Location, MAX_CONFIG, json_refusal, read_text, weigh};
use crate::error::{Error, Result, quote, shorten};

/// The parts of an adapter's configuration that concern weights.
#[derive(Debug)]
pub(super) struct AdapterConfig {
    /// The path or hub id of the base where the adapter was trained.
    pub(super) base: Option<String>,
    /// The revision of the base on the hub.
    pub(super) revision: Option<String>,
    pub(super) kind: AdapterKind,
}

/// The kinds of adapter that are read, each with the parameters that its tensors do not give.
#[derive(Debug)]
pub(super) enum AdapterKind {
    /// W + s B A; with DoRA, the rows of the sum are scaled to given lengths.
    Lora(LoraConfig),
    /// W + s (A1 B1) * (A2 B2), where * multiplies entry by entry.
    Loha(RankConfig),
    /// W + s (A kron B).
    Lokr(RankConfig),
    /// Rows or columns of W, each times a number.
    Ia3,
    /// W with some rows replaced: the rows that `alps.AlpsConfig` trains.
    Alps,
}

#[derive(Debug)]
pub(super) struct LoraConfig {
    pub(super) ranks: RankConfig,
    pub(super) dora: bool,
}

/// The ends of the names of LoRA's tensors.
const LORA_ENDINGS: [&str; 6] = [
    "lora_A.weight",
    "lora_B.weight",
    "lora_B.bias",
    "lora_magnitude_vector",
    "lora_embedding_A",
    "lora_embedding_B",
];

impl AdapterKind {
    /// The name of the kind in PEFT.
    pub(super) fn name(&self) -> &'static str {
        match self {
            AdapterKind::Lora(_) => "LORA",
            AdapterKind::Loha(_) => "LOHA",
            AdapterKind::Lokr(_) => "LOKR",
            AdapterKind::Ia3 => "IA3",
            AdapterKind::Alps => "ALPS",
        }
    }

    /// What the ranks of its changes follow from, if they have ranks.
    pub(super) fn ranks(&self) -> Option<&RankConfig> {
        match self {
            AdapterKind::Lora(lora) => Some(&lora.ranks),
            AdapterKind::Loha(ranks) | AdapterKind::Lokr(ranks) => Some(ranks),
            AdapterKind::Ia3 | AdapterKind::Alps => None,
        }
    }

    /// The ends of the names of this kind's tensors, and the prefix of one of the last parts of all such names.
    pub(super) fn endings(&self) -> (&'static [&'static str], &'static str) {
        match self {
            AdapterKind::Lora(_) => (&LORA_ENDINGS, "lora_"),
            AdapterKind::Loha(_) => (&["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"], "hada_"),
            AdapterKind::Lokr(_) => {
                (&["lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"], "lokr_")
            }
            AdapterKind::Ia3 => (&["ia3_l"], "ia3_"),
            AdapterKind::Alps => (&["alps_rows", "alps_bias_rows", "alps_indices"], "alps_"),
        }
    }
}

/// What the ranks of the modules' changes, and their scales, follow from.
#[derive(Debug)]
pub(super) struct RankConfig {
    rank: f64,
    alpha: f64,
    ranks: NumberByModule,
    alphas: NumberByModule,
    by_root: bool,
}

/// The rank of a module's change, and its factor: alpha / r, or alpha / sqrt(r) with rank stabilisation (rsLoRA).
#[derive(Clone, Copy, Debug)]
pub(super) struct RankAndScale {
    pub(super) rank: f64,
    pub(super) scale: f64,
}

impl RankConfig {
    /// The ranks and scales of the modules' changes, or why they cannot be told. Asks `check` whether to go on.
    pub(super) fn of_modules(
        &self,
        modules: &[&str],
        check: impl Fn() -> Result<()>,
        refusal: impl Fn(String) -> Error,
    ) -> Result<Vec<RankAndScale>> {
        let numbers = |list: &NumberByModule| list.of_modules(modules, &check, &refusal);
        let (ranks, alphas) = (numbers(&self.ranks)?, numbers(&self.alphas)?);
        let of_module = |(rank, alpha): (Option<f64>, Option<f64>)| {
            let (rank, alpha) = (rank.unwrap_or(self.rank), alpha.unwrap_or(self.alpha));
            RankAndScale { rank, scale: if self.by_root { alpha / rank.sqrt() } else { alpha / rank } }
        };
        Ok(ranks.into_iter().zip(alphas).map(of_module).collect())
    }
}

/// The fields of the file that are read, and the rest.
#[derive(Deserialize)]
#[serde(expecting = "a JSON object")]
struct ConfigFields {
    peft_type: Option<String>,
    base_model_name_or_path: Option<String>,
    revision: Option<String>,
    r: Option<f64>,
    lora_alpha: Option<f64>,
    alpha: Option<f64>,
    rank_pattern: Option<NumberByModule>,
    alpha_pattern: Option<NumberByModule>,
    use_rslora: Option<bool>,
    use_dora: Option<bool>,
    init_lora_weights: Option<Value>,
    target_parameters: Option<Vec<String>>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// Keys whose values never change query, key and value weights: those on how the adapter was made or is trained, on its
/// purpose, or on what its tensors show as well.
#[rustfmt::skip]
const WITHOUT_EFFECT: [&str; 37] = [
    "auto_mapping", "bias", "check_base", "corda_config", "decompose_both", "decompose_factor", "ensure_weight_tying",
    "eva_config", "exclude_modules", "fan_in_fan_out", "feedforward_modules", "fingerprint", "fingerprints", "heads",
    "inference_mode", "init_ia3_weights", "init_weights", "layers_pattern", "layers_to_transform",
    "loftq_config", "lora_bias", "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core",
    "module_dropout", "modules_to_save", "peft_version", "qalora_group_size", "rank_dropout",
    "rank_dropout_scale", "runtime_config", "target_modules", "task_type", "trainable_token_indices",
    "use_effective_conv2d", "velora_config",
];

/// The kinds of adapter that are read, as PEFT names them.
const KINDS: [&str; 5] = ["LORA", "LOHA", "LOKR", "IA3", "ALPS"];

/// What to do with an adapter that is not read.
pub(super) const ADVICE: &str =
    "merge the adapter into its base with peft's `model.merge_and_unload()`, and save the result";

impl AdapterConfig {
    /// Reads the configuration at `location`.
    pub(super) fn read(location: &Location) -> Result<Self> {
        let (path, text) = (location.path(), read_text(location, MAX_CONFIG)?);
        let fields = weigh(&text)
            .and_then(|()| serde_json::from_str(&text))
            .map_err(|error| json_refusal(path, "the configuration of the adapter", &error))?;
        check(fields).map_err(|problem| Error::checkpoint(path, problem))
    }
}

fn check(fields: ConfigFields) -> std::result::Result<AdapterConfig, String> {
    let Some(kind) = fields.peft_type else {
        return Err("the configuration has no `peft_type`, so this is no adapter of PEFT".to_owned());
    };
    if !KINDS.contains(&&*kind) {
        return Err(format!(
            "the adapter is of the kind {}; those that are read are {}; {ADVICE}",
            quote(&kind),
            KINDS.join(", ")
        ));
    }
    for (key, value) in &fields.rest {
        if !WITHOUT_EFFECT.contains(&&**key) && !is_unset(value) {
            return Err(format!(
                "{} is {}, which may change what the adapter's tensors mean and is not read; {ADVICE}",
                quote(key),
                quote(&value.to_string())
            ));
        }
    }
    let ranks = |alpha: Option<f64>, by_root: bool| {
        let number = |key: &str, value: Option<f64>| match value {
            Some(value) if value.is_finite() => Ok(value),
            Some(value) => Err(format!("`{key}` should be a finite number, but is {value}")),
            None => Err(format!("the configuration has no `{key}`")),
        };
        let key = if kind == "LORA" { "lora_alpha" } else { "alpha" };
        Ok::<_, String>(RankConfig {
            rank: number("r", fields.r)?,
            alpha: number(key, alpha)?,
            ranks: fields.rank_pattern.unwrap_or_default(),
            alphas: fields.alpha_pattern.unwrap_or_default(),
            by_root,
        })
    };
    let kind = match &*kind {
        "LORA" => {
            check_initialisation(fields.init_lora_weights.as_ref())?;
            for parameter in fields.target_parameters.iter().flatten() {
                if may_be_attention_parameter(parameter)? {
                    return Err(format!(
                        "`target_parameters` names {}, and changes of single parameters are read outside \
                         attention only; {ADVICE}",
                        quote(parameter)
                    ));
                }
            }
            AdapterKind::Lora(LoraConfig {
                ranks: ranks(fields.lora_alpha, fields.use_rslora.unwrap_or(false))?,
                dora: fields.use_dora.unwrap_or(false),
            })
        }
        "LOHA" => AdapterKind::Loha(ranks(fields.alpha, false)?),
        "LOKR" => AdapterKind::Lokr(ranks(fields.alpha, false)?),
        "IA3" => AdapterKind::Ia3,
        _ => AdapterKind::Alps,
    };
    Ok(AdapterConfig { base: fields.base_model_name_or_path, revision: fields.revision, kind })
}

/// Whether a name in `target_parameters`, which may be the end of a longer one, may be that of attention weights.
fn may_be_attention_parameter(name: &str) -> std::result::Result<bool, String> {
    let module = name.strip_suffix(".weight").or_else(|| name.strip_suffix(".bias")).unwrap_or(name);
    let may_be = ["weight", "bias"].contains(&module)
        || may_be_attention(&format!("layer.{module}")).map_err(|error| error.to_string())?;
    Ok(may_be && !is_outside_attention(name))
}

/// Refuses initialisations that subtract the adapter from the base.
fn check_initialisation(start: Option<&Value>) -> std::result::Result<(), String> {
    match start {
        None | Some(Value::Null | Value::Bool(_)) => Ok(()),
        Some(Value::String(name))
            if ["true", "gaussian", "eva", "orthogonal", "mica"].contains(&&*name.to_lowercase()) =>
        {
            Ok(())
        }
        Some(other) => Err(format!(
            "`init_lora_weights` is {}, which changes the weights of the base as well; save the adapter as one of \
             the unchanged base, with `path_initial_model_for_weight_conversion` of peft's `save_pretrained`, or \
             {ADVICE}",
            shorten(&other.to_string(), 80)
        )),
    }
}

fn is_unset(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
        _ => false,
    }
}
