//! The selection rules against examples worked out by hand, and against their own definitions.

use alps::select::{self, LayerShape, Shape};
use alps::{Error, Result};
use proptest::prelude::*;

fn shape(layers: usize, query_heads: usize, key_value_heads: usize) -> Shape {
    let layer = LayerShape { query_heads, key_value_heads, head_parameters: 20, group_parameters: 50 };
    Shape { layers: vec![layer; layers] }
}

fn chosen(selection: Result<Vec<bool>>) -> Vec<usize> {
    let selection = selection.expect("a selection");
    (0..selection.len()).filter(|&index| selection[index]).collect()
}

#[test]
fn a_count_is_not_fooled_by_binary_rounding() {
    for (ratio, total, expected) in [
        (0.1, 30, 3), // 0.1 * 30 is 3.0000000000000004
        (0.3, 10, 3),
        (0.7, 10, 7),
        (0.1, 1024, 103),
        (0.0, 5, 0),
        (1.0, 5, 5),
        (1e-12, 5, 1),
        (0.5, 0, 0),
        (0.29, 100, 29),
        (0.1001, 30, 4),
    ] {
        assert_eq!(select::count(ratio, total).expect("a count"), expected, "{ratio} of {total}");
    }
}

#[test]
fn a_ratio_outside_its_domain_is_refused_with_its_value() {
    for (ratio, written) in [(-0.1, "-0.1"), (1.5, "1.5"), (f64::NAN, "NaN"), (f64::INFINITY, "inf")] {
        let refusal = select::count(ratio, 10);
        assert!(matches!(&refusal, Err(Error::Argument(text)) if text.contains(written)), "{refusal:?}");
    }
}

#[test]
fn ties_go_to_the_lower_index_and_not_a_number_comes_last() {
    let scores = [f64::NAN, 0.0, 2.0, -0.0, f64::NEG_INFINITY, 2.0];
    assert_eq!(select::ranking(&scores), [2, 5, 1, 3, 4, 0]);
}

#[test]
fn global_takes_the_best_of_all_layers() {
    let scores = [0.1, 0.9, 0.8, 0.2, 0.7, 0.3, 0.0, 0.6];
    assert_eq!(chosen(select::global(&scores, &shape(2, 4, 2), 0.3)), [1, 2, 4]);
}

#[test]
fn per_layer_takes_the_best_of_each_layer() {
    let scores = [0.1, 0.9, 0.8, 0.2, 0.7, 0.3, 0.0, 0.6];
    assert_eq!(chosen(select::per_layer(&scores, &shape(2, 4, 2), 0.3)), [1, 2, 4, 7]);
}

#[test]
fn groups_are_taken_whole_by_their_mean() {
    let scores = [0.0, 0.9, 0.5, 0.5, 0.3, 0.3, f64::NAN, 9.0];
    assert_eq!(chosen(select::key_value_groups(&scores, &shape(2, 4, 2), 0.25)), [2, 3]);
    assert_eq!(chosen(select::key_value_groups(&scores, &shape(2, 4, 2), 0.75)), [0, 1, 2, 3, 4, 5]);
}

#[test]
fn a_budget_pays_for_a_group_once() {
    let scores = [4.0, 3.0, 2.0, 1.0]; // heads cost 20, groups 50; heads 0 and 1 share a group
    let shape = shape(1, 4, 2);
    for (budget, expected) in
        [(0, &[][..]), (69, &[]), (70, &[0]), (89, &[0]), (90, &[0, 1]), (159, &[0, 1]), (160, &[0, 1, 2])]
    {
        assert_eq!(chosen(select::within_budget(&scores, &shape, budget)), expected, "{budget}");
    }
    assert_eq!(chosen(select::within_budget(&scores, &shape, u64::MAX)), [0, 1, 2, 3]);
}

#[test]
fn a_budget_ends_at_the_first_head_it_cannot_pay() {
    let scores = [4.0, 1.0, 3.0, 2.0]; // head 2 opens a second group; head 1 would be cheap, but ranks lower
    assert_eq!(chosen(select::within_budget(&scores, &shape(1, 4, 2), 90)), [0]);
}

#[test]
fn random_heads_are_the_same_for_ever() {
    // Worked out by another implementation of ChaCha20 (RFC 8439, 64-bit counter and stream).
    let shape = shape(4, 8, 2);
    assert_eq!(chosen(select::random(&shape, 0.2, 0)), [4, 13, 14, 16, 19, 22, 26]);
    assert_eq!(chosen(select::random(&shape, 0.2, 2505)), [2, 8, 11, 12, 15, 18, 20]);
    assert_eq!(chosen(select::layer_consistent(&shape, 0.2, 0)), [6, 7, 10, 15, 16, 21, 25, 26]);
    assert_eq!(chosen(select::layer_consistent(&shape, 0.2, u64::MAX)), [4, 7, 10, 13, 16, 21, 29, 31]);
}

#[test]
fn random_heads_are_uniform() {
    let shape = shape(1, 5, 1);
    let mut drawn = [0_u32; 5];
    for seed in 0..10_000 {
        chosen(select::random(&shape, 0.4, seed)).into_iter().for_each(|head| drawn[head] += 1);
    }
    // 4000 expected each, standard deviation 49
    assert!(drawn.iter().all(|&times| times.abs_diff(4000) < 300), "{drawn:?}");
}

#[test]
fn a_report_counts_each_group_once() {
    let selection = [true, true, false, false, false, false, true, false];
    let report = select::report(&selection, &shape(2, 4, 2)).expect("a report");
    assert_eq!((report.heads, report.total_heads), (3, 8));
    assert_eq!((report.key_value_groups, report.total_key_value_groups), (2, 4));
    assert_eq!((report.trainable_parameters, report.total_parameters), (3 * 20 + 2 * 50, 8 * 20 + 4 * 50));
}

#[test]
fn impossible_shapes_and_lengths_are_refused() {
    let mut huge = shape(1, 4, 2);
    huge.layers[0].head_parameters = u64::MAX;
    for shape in [shape(2, 4, 3), shape(1, 0, 1), shape(1, 4, 0), huge, shape(2, 4, 2)] {
        let refusal = select::global(&[0.0; 4], &shape, 0.5);
        assert!(matches!(refusal, Err(Error::Argument(_))), "{shape:?}");
    }
}

/// Layers of sizes of their own, and a score for every place of a row.
fn problem() -> impl Strategy<Value = (Vec<f64>, Shape)> {
    let layer = (1_usize..4, 1_usize..4).prop_map(|(groups, size)| shape(1, groups * size, groups).layers[0]);
    proptest::collection::vec(layer, 0..5).prop_flat_map(|layers| {
        let shape = Shape { layers };
        let score = prop_oneof![8 => (0_u8..6).prop_map(f64::from), 1 => any::<f64>()];
        (proptest::collection::vec(score, shape.layers.len() * shape.width()), Just(shape))
    })
}

/// The places at which there is a head.
fn places(shape: &Shape) -> Vec<usize> {
    let of_layer = |(row, layer): (usize, &LayerShape)| {
        let first = row * shape.width();
        first..first + layer.query_heads
    };
    shape.layers.iter().enumerate().flat_map(of_layer).collect()
}

fn subset(small: &[bool], large: &[bool]) -> bool {
    small.iter().zip(large).all(|(&small, &large)| !small || large)
}

proptest! {
    #[test]
    fn every_rule_takes_its_count_and_nests_in_ratio(
        (scores, shape) in problem(), ratio in 0.0..=1.0, other in 0.0..=1.0, seed in any::<u64>(),
    ) {
        let (less, more) = if ratio < other { (ratio, other) } else { (other, ratio) };
        let in_all = select::count(more, shape.heads())?;
        let of_layers: Result<Vec<usize>> =
            shape.layers.iter().map(|layer| select::count(more, layer.query_heads)).collect();
        let in_layers: usize = of_layers?.iter().sum();
        let groups: usize = shape.layers.iter().map(|layer| layer.key_value_heads).sum();
        let in_groups = select::count(more, groups)?;
        type Rule<'a> = &'a dyn Fn(f64) -> Result<Vec<bool>>;
        let rules: [(Rule, usize); 4] = [
            (&|ratio| select::global(&scores, &shape, ratio), in_all),
            (&|ratio| select::per_layer(&scores, &shape, ratio), in_layers),
            (&|ratio| select::random(&shape, ratio, seed), in_all),
            (&|ratio| select::layer_consistent(&shape, ratio, seed), in_layers),
        ];
        for (rule, expected) in rules {
            let large = rule(more)?;
            prop_assert_eq!(large.iter().filter(|&&flag| flag).count(), expected);
            prop_assert!(subset(&rule(less)?, &large));
            let places = places(&shape);
            prop_assert!((0..large.len()).all(|place| !large[place] || places.contains(&place)));
        }
        let by_group = select::key_value_groups(&scores, &shape, more)?;
        prop_assert_eq!(select::report(&by_group, &shape)?.key_value_groups, in_groups);
        prop_assert!(subset(&select::key_value_groups(&scores, &shape, less)?, &by_group));
    }

    #[test]
    fn a_budget_is_kept_and_used_up((scores, shape) in problem(), budget in 0_u64..2000) {
        let selection = select::within_budget(&scores, &shape, budget)?;
        let report = select::report(&selection, &shape)?;
        prop_assert!(report.trainable_parameters <= budget);
        let places = places(&shape);
        let of_heads: Vec<f64> = places.iter().map(|&place| scores[place]).collect();
        let ranking: Vec<usize> = select::ranking(&of_heads).into_iter().map(|head| places[head]).collect();
        prop_assert!(ranking[..report.heads].iter().all(|&head| selection[head]));
        if let Some(&next) = ranking.get(report.heads) {
            let mut more = selection;
            more[next] = true;
            prop_assert!(select::report(&more, &shape)?.trainable_parameters > budget);
        }
    }
}
