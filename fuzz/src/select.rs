//! The selection of heads. An input is what `arbitrary` makes of it.

use alps::Result;
use alps::select::{self, LayerShape, Shape};
use arbitrary::{Arbitrary, Unstructured};

#[derive(Arbitrary, Debug)]
struct Layer {
    groups: u8,
    heads_per_group: u8,
    odd_heads: bool,
    parameters: [u64; 2],
    shift: u8,
}

impl Layer {
    fn shape(&self) -> LayerShape {
        let groups = usize::from(self.groups % 9);
        let [head_parameters, group_parameters] = self.parameters.map(|number| number >> (self.shift % 64));
        LayerShape {
            query_heads: groups * usize::from(self.heads_per_group % 5) + usize::from(self.odd_heads),
            key_value_heads: groups,
            head_parameters,
            group_parameters,
        }
    }
}

#[derive(Arbitrary, Debug)]
struct Plan {
    layers: [Option<Layer>; 4],
    ratio: f64,
    hundredths: Option<u8>,
    budget: u64,
    seed: u64,
    coarse: bool,
    /// One too few or too many scores.
    extra: Option<bool>,
    scores: Vec<u8>,
}

/// Selects by every rule, and checks how many heads are selected and which.
pub fn run(input: &[u8]) -> bool {
    let Ok(plan) = Plan::arbitrary_take_rest(Unstructured::new(input)) else { return false };
    let shape = Shape { layers: plan.layers.iter().flatten().map(Layer::shape).collect() };
    let ratio = plan.hundredths.map_or(plan.ratio, |number| f64::from(number) / 100.0);
    let (width, mut cells) = (shape.width(), shape.layers.len() * shape.width());
    match plan.extra {
        Some(true) => cells += 1,
        Some(false) => cells = cells.saturating_sub(1),
        None => {}
    }
    let scores: Vec<f64> = (0..cells).map(|cell| score(&plan, cell)).collect();
    let is_head = |cell: usize| cell % width < shape.layers[cell / width].query_heads;
    type Rule<'a> = (&'a str, Box<dyn Fn() -> Result<Vec<bool>> + 'a>);
    let rules: [Rule; 6] = [
        ("global", Box::new(|| select::global(&scores, &shape, ratio))),
        ("per_layer", Box::new(|| select::per_layer(&scores, &shape, ratio))),
        ("key_value_groups", Box::new(|| select::key_value_groups(&scores, &shape, ratio))),
        ("within_budget", Box::new(|| select::within_budget(&scores, &shape, plan.budget))),
        ("random", Box::new(|| select::random(&shape, ratio, plan.seed))),
        ("layer_consistent", Box::new(|| select::layer_consistent(&shape, ratio, plan.seed))),
    ];
    let mut selects = false;
    for (rule, select) in rules {
        let (Ok(selection), again) = (select(), select()) else { continue };
        selects = true;
        assert_eq!(again.expect("it was not refused"), selection, "{rule}");
        assert_eq!(selection.len(), shape.layers.len() * width, "{rule}");
        let chosen: Vec<usize> = (0..selection.len()).filter(|cell| selection[*cell]).collect();
        assert!(chosen.iter().all(|cell| is_head(*cell)), "{rule} selects a cell without a head");
        let report = select::report(&selection, &shape).expect("the selection is of the shape");
        assert_eq!((report.heads, report.total_heads), (chosen.len(), shape.heads()), "{rule}");
        assert!(report.trainable_parameters <= report.total_parameters, "{rule}");
        assert!(report.key_value_groups <= report.total_key_value_groups, "{rule}");
        let counted = |total| select::count(ratio, total).expect("the ratio was not refused");
        match rule {
            "global" | "random" => assert_eq!(chosen.len(), counted(shape.heads()), "{rule}"),
            "per_layer" | "layer_consistent" => {
                assert_eq!(
                    chosen.len(),
                    shape.layers.iter().map(|layer| counted(layer.query_heads)).sum::<usize>(),
                    "{rule}"
                );
            }
            "key_value_groups" => {
                assert_eq!(report.key_value_groups, counted(report.total_key_value_groups), "{rule}");
            }
            _ => assert!(report.trainable_parameters <= plan.budget, "{rule} exceeds the budget"),
        }
        if rule == "global" {
            let worst = chosen.iter().map(|cell| scores[*cell]).fold(f64::INFINITY, f64::min);
            let left = (0..cells).filter(|cell| is_head(*cell) && !selection[*cell]);
            assert!(
                chosen.iter().any(|cell| scores[*cell].is_nan())
                    || left.into_iter().all(|cell| scores[cell].is_nan() || scores[cell] <= worst)
            );
        }
    }
    let ranking = select::ranking(&scores);
    let mut sorted = ranking.clone();
    sorted.sort_unstable();
    assert!(sorted.into_iter().eq(0..scores.len()), "a ranking has every index once");
    for pair in ranking.windows(2) {
        let [one, next] = pair else { unreachable!("windows of 2") };
        let (better, worse) = (scores[*one], scores[*next]);
        assert!(
            better > worse
                || (better == worse || better.is_nan()) && one < next
                || !better.is_nan() && worse.is_nan()
        );
    }
    selects
}

/// The score of a cell: any number, or, with many ties, a small whole one.
fn score(plan: &Plan, cell: usize) -> f64 {
    let byte = |at: usize| plan.scores.get(at % plan.scores.len().max(1)).copied().unwrap_or(0);
    if plan.coarse {
        return f64::from(byte(cell) % 4);
    }
    f64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|part| byte(cell * 8 + part)))
}
