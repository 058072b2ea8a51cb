//! Numbers that a configuration of PEFT gives to modules by patterns of their names: `rank_pattern`, `alpha_pattern`.

use std::fmt;
use std::time::{Duration, Instant};

use fancy_regex::{Regex, RegexBuilder};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use crate::error::{Error, Result, quote, shorten};

/// Numbers for modules by patterns of their names, in the order of the file. The first pattern that matches counts.
///
/// The patterns are regular expressions of Python, lookaround included. Most are names, of which a file may have
/// thousands; `fancy_regex` matches the others, whose number, sizes and steps are limited. A program, with what matching
/// keeps, may take 30 MB, so there is one at a time. Operations on sets are refused.
#[derive(Debug, Default)]
pub(super) struct NumberByModule(Vec<(Pattern, f64)>);

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

/// The most patterns with operators.
const MOST_EXPRESSIONS: usize = 64;

/// The most bytes of all expressions together. Compiling an expression takes 600 bytes of memory for each of its own.
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

/// Whether an expression, of which this is the program, matches a module.
fn matches(pattern: &str, program: &Regex, module: &str) -> Checked<bool> {
    if module.len() > LONGEST_NAME {
        let (found, module) = (module.len(), quote(module));
        return Err(format!(
            "the module {module} has a name of {found} bytes; expected at most {LONGEST_NAME} where a pattern has \
             operators"
        ));
    }
    program.is_match(module).map_err(|error| {
        let (pattern, module) = (shorten(pattern, 80), quote(module));
        format!("the pattern {pattern} cannot be matched with {module}: {error}")
    })
}

impl NumberByModule {
    /// The number of each module, if a pattern matches it. Asks `check` whether to go on.
    pub(super) fn of_modules(
        &self,
        modules: &[&str],
        check: impl Fn() -> Result<()>,
        refusal: impl Fn(String) -> Error,
    ) -> Result<Vec<Option<f64>>> {
        let (mut numbers, started) = (vec![None; modules.len()], Instant::now());
        let check = || match check() {
            Ok(()) if started.elapsed() > LONGEST_MATCHING => Err(refusal(format!(
                "the patterns of the configuration cannot be matched with the names of {} modules within {} seconds",
                modules.len(),
                LONGEST_MATCHING.as_secs()
            ))),
            checked => checked,
        };
        for (pattern, number) in &self.0 {
            check()?;
            let unmatched = modules.iter().zip(&mut numbers).filter(|(_, found)| found.is_none());
            match pattern {
                Pattern::Name(name) => {
                    unmatched
                        .filter(|(module, _)| name.matches(module))
                        .for_each(|(_, found)| *found = Some(*number));
                }
                Pattern::Expression(pattern) => {
                    let program = compile(pattern).map_err(&refusal)?;
                    for (module, found) in unmatched {
                        check()?;
                        if matches(pattern, &program, module).map_err(&refusal)? {
                            *found = Some(*number);
                        }
                    }
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
