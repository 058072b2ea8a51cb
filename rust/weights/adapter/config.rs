//! Reads `adapter_config.json`, the configuration of an adapter of PEFT.

use std::fmt;
use std::time::{Duration, Instant};

use fancy_regex::{Regex, RegexBuilder};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::base_modules::is_outside_attention;
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

/// Numbers for modules by patterns of their names, in the order of the file. The first pattern that matches counts.
///
/// The patterns are regular expressions of Python, lookaround included. Most are names, of which a file may have
/// thousands; `fancy_regex` matches the others, whose number, sizes and steps are limited. A program, with what matching
/// keeps, may take 30 MB, so there is one at a time. Operations on sets are refused.
#[derive(Debug, Default)]
struct NumberByModule(Vec<(Pattern, f64)>);

#[derive(Debug)]
enum Pattern {
    Name(NamePattern),
    Expression(String),
}

/// A pattern without operators: a character, or nothing for any one. It matches a name or the last parts of one.
#[derive(Debug)]
struct NamePattern(Vec<Option<char>>);

/// A value, or why there is none.
type Checked<T> = std::result::Result<T, String>;

/// Tells whether a pattern matches a module.
type Matcher<'a> = Box<dyn Fn(&str) -> Checked<bool> + 'a>;

/// The most patterns with operators.
const MOST_EXPRESSIONS: usize = 64;

/// The most bytes of all expressions together. To compile one takes 600 bytes of memory for each.
const MOST_TEXT: usize = 16 << 10;

/// The most classes, groups with `?`, counts and other escapes of an expression. Where it has lookaround, each may become a
/// program of its own.
const MOST_PROGRAMS: usize = 32;

/// The most bytes of such a program.
const PROGRAM: usize = 256 << 10;

/// The most steps back that a match may take. After each, lookaround may read the whole name.
const MOST_STEPS: usize = 5_000;

/// The most bytes of a name that expressions are matched with.
const LONGEST_NAME: usize = 256;

/// The longest time that matching one list of patterns may take.
const LONGEST_MATCHING: Duration = Duration::from_secs(5);

impl NamePattern {
    /// The pattern; nothing if it has operators.
    fn parse(pattern: &str) -> Option<Self> {
        let (mut characters, mut parsed) = (pattern.chars(), Vec::new());
        while let Some(character) = characters.next() {
            parsed.push(match character {
                '.' => None,
                '\\' => Some(characters.next().filter(|next| ['.', '-', '_'].contains(next))?),
                '-' | '_' => Some(character),
                _ if character.is_ascii_alphanumeric() => Some(character),
                _ => return None,
            });
        }
        (!parsed.is_empty()).then_some(Self(parsed))
    }

    fn matches(&self, module: &str) -> bool {
        let mut rest = module.chars();
        let fits = self.0.iter().rev().all(|expected| {
            rest.next_back().is_some_and(|found| expected.map_or(found != '\n', |expected| expected == found))
        });
        let before = rest.as_str();
        fits && !before.contains('\n') && (before.is_empty() || before.ends_with('.'))
    }
}

impl Pattern {
    fn matcher(&self) -> Checked<Matcher<'_>> {
        match self {
            Self::Name(name) => Ok(Box::new(|module| Ok(name.matches(module)))),
            Self::Expression(pattern) => {
                let program = compile(pattern)?;
                Ok(Box::new(move |module| {
                    if module.len() > LONGEST_NAME {
                        let (found, module) = (module.len(), quote(module));
                        return Err(format!(
                            "the module {module} has a name of {found} bytes; expected at most {LONGEST_NAME} where a \
                             pattern has operators"
                        ));
                    }
                    program.is_match(module).map_err(|error| {
                        let (pattern, module) = (shorten(pattern, 80), quote(module));
                        format!("the pattern {pattern} cannot be matched with {module}: {error}")
                    })
                }))
            }
        }
    }
}

/// The program of an expression, or why it has none.
fn compile(pattern: &str) -> Checked<Regex> {
    let refusal = |problem: &str| Err(format!("the pattern {} {problem}", quote(pattern)));
    if let Some(operator) = ["&&", "--", "~~", "[["].iter().find(|it| pattern.contains(**it)) {
        return refusal(&format!(
            "has {operator}, which may be an operation on sets in one reader and text in another; write it with a \
             backslash"
        ));
    }
    let programs = programs(pattern);
    if programs > MOST_PROGRAMS {
        return refusal(&format!(
            "has {programs} sets, counts, escaped letters and groups with `?`; expected at most {MOST_PROGRAMS}"
        ));
    }
    // `get_pattern_key` of PEFT makes the same expression.
    let built = RegexBuilder::new(&format!(r"^(.*\.)?({pattern})$"))
        .delegate_size_limit(PROGRAM)
        .delegate_dfa_size_limit(PROGRAM)
        .backtrack_limit(MOST_STEPS)
        .build();
    built.or_else(|_| {
        refusal("cannot be read: it is no expression that is known here, or takes too much memory")
    })
}

/// The number of what may become a program of its own.
fn programs(pattern: &str) -> usize {
    let (mut count, mut characters) = (0, pattern.chars().peekable());
    while let Some(character) = characters.next() {
        count += usize::from(match character {
            '[' | '{' => true,
            '(' => characters.peek() == Some(&'?'),
            '\\' => characters.next().is_some_and(char::is_alphanumeric),
            _ => false,
        });
    }
    count
}

impl NumberByModule {
    /// The number of each module, if a pattern matches it.
    fn of_modules(
        &self,
        modules: &[&str],
        check: impl Fn() -> Result<()>,
        refusal: impl Fn(String) -> Error,
    ) -> Result<Vec<Option<f64>>> {
        let (mut numbers, started) = (vec![None; modules.len()], Instant::now());
        for (pattern, number) in &self.0 {
            let matches = pattern.matcher().map_err(&refusal)?;
            for (module, found) in modules.iter().zip(&mut numbers) {
                check()?;
                if started.elapsed() > LONGEST_MATCHING {
                    return Err(refusal(format!(
                        "the patterns of the configuration cannot be matched with the names of {} modules within {} \
                         seconds",
                        modules.len(),
                        LONGEST_MATCHING.as_secs()
                    )));
                }
                if found.is_none() && matches(module).map_err(&refusal)? {
                    *found = Some(*number);
                }
            }
        }
        Ok(numbers)
    }
}

impl<'de> Deserialize<'de> for NumberByModule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(NumberByModuleVisitor)
    }
}

struct NumberByModuleVisitor;

impl<'de> Visitor<'de> for NumberByModuleVisitor {
    type Value = NumberByModule;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("numbers by patterns of module names")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
        let (mut patterns, mut expressions, mut text) = (Vec::new(), 0, 0);
        while let Some((pattern, number)) = map.next_entry::<String, f64>()? {
            if let Some(name) = NamePattern::parse(&pattern) {
                patterns.push((Pattern::Name(name), number));
                continue;
            }
            (expressions, text) = (expressions + 1, text + pattern.len());
            if expressions > MOST_EXPRESSIONS || text > MOST_TEXT {
                return Err(serde::de::Error::custom(format_args!(
                    "expected at most {MOST_EXPRESSIONS} patterns with operators, of {MOST_TEXT} bytes together, \
                     found more"
                )));
            }
            compile(&pattern).map_err(serde::de::Error::custom)?;
            patterns.push((Pattern::Expression(pattern), number));
        }
        Ok(NumberByModule(patterns))
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

const ADVICE: &str =
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_match_as_the_same_expressions_do() {
        let patterns =
            ["q_proj", "layers.0.q_proj", r"layers\.0\.q_proj", ".", "..", "a-b", "0", r"\-\_", "q_projx"];
        let modules = [
            "q_proj",
            "xq_proj",
            "layers.0.q_proj",
            "model.layers.0.q_proj",
            "layersx0xq_proj",
            "layers.10.q_proj",
            ".q_proj",
            "",
            ".",
            "a",
            "a.b",
            "é",
            "x.é",
            "a-b",
            "x.a-b",
            "-_",
            "x\n.q_proj",
            "\n",
            "q_proj\n",
            "0",
            "é.0",
        ];
        for pattern in patterns {
            let name = NamePattern::parse(pattern).unwrap();
            let expression = Regex::new(&format!(r"^(.*\.)?({pattern})$")).unwrap();
            for module in modules {
                assert_eq!(
                    name.matches(module),
                    expression.is_match(module).unwrap(),
                    "{pattern} {module:?}"
                );
            }
        }
        for pattern in ["", "a|b", r"\d", "a*", "[ab]", "^a", "a$", "(a)", r"\", "é"] {
            assert!(NamePattern::parse(pattern).is_none(), "{pattern}");
        }
    }

    #[test]
    fn usual_expressions_are_within_the_limits() {
        for pattern in [
            r".*self_attn\.(q|k|v)_proj",
            r"model\.layers\.\d+\.\w+\.q_proj",
            r"(?!.*vision).*\.[qkv]_proj",
            ".*",
            r"\w+",
        ] {
            assert!(NamePattern::parse(pattern).is_none() && compile(pattern).is_ok(), "{pattern}");
        }
        for pattern in [r"\w{1000}", r"(?:\w{100}){100}", "((a{1000}){1000}){1000}", r"\ba{9551615}"] {
            assert!(compile(pattern).is_err(), "{pattern}");
        }
        assert!(compile(&r"(?=\w)".repeat(MOST_PROGRAMS / 2)).is_ok());
        assert!(compile(&r"(?=\w)".repeat(MOST_PROGRAMS / 2 + 1)).is_err());
    }

    #[test]
    fn expressions_are_matched_with_names_of_limited_length() {
        let expression = NumberByModule(vec![(Pattern::Expression(".*a".to_owned()), 2.0)]);
        let numbers = |module: &str| {
            expression.of_modules(
                &[module],
                || Ok(()),
                |problem| Error::checkpoint(std::path::Path::new("a"), problem),
            )
        };
        assert_eq!(numbers(&"a".repeat(LONGEST_NAME)).unwrap(), [Some(2.0)]);
        assert_eq!(numbers("b").unwrap(), [None]);
        assert!(numbers(&"a".repeat(LONGEST_NAME + 1)).is_err());
    }
}
