//! Models whose attention is found, and every kind that must be refused.

use std::collections::BTreeMap;
use std::path::Path;

use alps::Error;
use alps::attention::{
    Attention, Component, MatrixSize, Orientation, Role, StoredShapes, TensorShapes, layouts,
};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::support::{ModelShape, ModelType, assert_says, model_shapes};

type Tensors = BTreeMap<String, Vec<usize>>;

fn resolve(config: &Value, tensors: &Tensors) -> alps::Result<Attention> {
    resolve_component(config, tensors, None)
}

fn resolve_component(
    config: &Value,
    tensors: &Tensors,
    component: Option<Component>,
) -> alps::Result<Attention> {
    let stored = StoredShapes::new(tensors.iter().map(|(name, shape)| (&**name, &**shape))).unwrap();
    let shapes = TensorShapes { stored, ..TensorShapes::default() };
    Attention::resolve(Path::new("some/model"), config.as_object().unwrap(), &shapes, component)
}

/// Which rows of which module a matrix is.
#[track_caller]
fn rows(attention: &Attention, role: Role, layer: usize, index: usize) -> (&str, std::ops::Range<usize>) {
    let slice = attention.projection_rows(role, layer, index).unwrap();
    (&slice.projection.name, slice.rows)
}

fn numbers(attention: &Attention) -> Vec<usize> {
    attention.geometry().layers.iter().map(|layer| layer.number).collect()
}

/// The reason why a model is refused.
#[track_caller]
fn refusal(config: &Value, tensors: &Tensors) -> String {
    match resolve(config, tensors) {
        Err(Error::Model { path, problem }) => {
            assert_eq!(path, Path::new("some/model"));
            problem
        }
        Err(other) => panic!("refused in another way: {other}"),
        Ok(_) => panic!("not refused"),
    }
}

/// Two layers, six heads of size 4 that share two groups, and a hidden size of 16.
fn llama() -> (Value, Tensors) {
    (LLAMA.config(ModelType::Llama), separate("model.", 2))
}

const LLAMA: ModelShape =
    ModelShape { layers: 2, groups: 2, heads_per_group: 3, head_size: 4, hidden_size: 16 };

fn separate(prefix: &str, layers: usize) -> Tensors {
    let mut tensors = ModelShape { layers, ..LLAMA }.tensor_shapes(ModelType::Llama, prefix);
    tensors.insert("lm_head.weight".to_owned(), vec![100, 16]);
    for layer in 0..layers {
        tensors.insert(format!("{prefix}layers.{layer}.self_attn.o_proj.weight"), vec![16, 24]);
    }
    tensors
}

/// Two layers, three heads of size 4.
fn gpt2() -> (Value, Tensors) {
    let shape = ModelShape { layers: 2, groups: 3, heads_per_group: 1, head_size: 4, hidden_size: 12 };
    let mut tensors = shape.tensor_shapes(ModelType::Gpt2, "");
    for layer in 0..2 {
        tensors.insert(format!("h.{layer}.attn.c_attn.bias"), vec![36]);
        tensors.insert(format!("h.{layer}.attn.bias"), vec![1, 1, 64, 64]);
        tensors.insert(format!("h.{layer}.crossattention.c_attn.weight"), vec![12, 24]);
    }
    (shape.config(ModelType::Gpt2), tensors)
}

/// Llama, after a change of its configuration.
#[track_caller]
fn refusal_of_llama_with(key: &str, value: Value) -> String {
    let (mut config, tensors) = llama();
    config[key] = value;
    refusal(&config, &tensors)
}

// What is found.

#[test]
fn heads_that_share_groups() {
    let (config, tensors) = llama();
    let attention = resolve(&config, &tensors).unwrap();
    let geometry = attention.geometry();
    assert_eq!((&*geometry.model_type, &*geometry.layout), ("llama", "separate"));
    assert_eq!((geometry.component, geometry.width()), (Component::Decoder, 6));
    assert_eq!(numbers(&attention), [0, 1]);
    for layer in &geometry.layers {
        let size = MatrixSize { rows: 4, columns: 16 };
        assert_eq!((layer.query_heads, layer.key_value_heads), (6, 2));
        assert_eq!((layer.query, layer.key, layer.value), (size, Some(size), Some(size)));
        assert_eq!((0..6).map(|head| layer.group_of(head)).collect::<Vec<_>>(), [0, 0, 0, 1, 1, 1]);
        assert_eq!((layer.heads_of(0), layer.heads_of(1)), (0..3, 3..6));
    }
    assert_eq!(rows(&attention, Role::Query, 1, 5), ("model.layers.1.self_attn.q_proj", 20..24));
    assert_eq!(rows(&attention, Role::Value, 0, 1), ("model.layers.0.self_attn.v_proj", 4..8));
    assert_eq!(attention.projections().len(), 6);
    assert_eq!(attention.projections()[4].name, "model.layers.1.self_attn.k_proj");
    assert!(attention.projections().iter().all(|module| module.orientation == Orientation::OutIn));
}

#[test]
fn columns_of_a_transposed_fused_tensor() {
    let (config, tensors) = gpt2();
    let attention = resolve(&config, &tensors).unwrap();
    assert_eq!(attention.projections().len(), 2);
    for (role, first) in [(Role::Query, 8), (Role::Key, 20), (Role::Value, 32)] {
        let slice = attention.projection_rows(role, 1, 2).unwrap();
        assert_eq!((&*slice.projection.name, slice.rows), ("h.1.attn.c_attn", first..first + 4));
        assert_eq!(slice.projection.orientation, Orientation::InOut);
        assert_eq!((slice.projection.out_features, slice.projection.in_features), (36, 12));
    }
}

/// One layer of this shape, under the names that its model type has.
fn one_layer(config: Value, tensors: &[(&str, &[usize])]) -> Attention {
    let tensors = tensors.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect();
    resolve(&config, &tensors).unwrap()
}

#[test]
fn heads_one_after_the_other_in_one_tensor() {
    let config = json!({"model_type": "gpt_neox", "num_hidden_layers": 1, "num_attention_heads": 3, "hidden_size": 12});
    let name = "gpt_neox.layers.0.attention.query_key_value";
    let attention = one_layer(config, &[(&format!("{name}.weight"), &[36, 12])]);
    assert_eq!(rows(&attention, Role::Query, 0, 2), (name, 24..28));
    assert_eq!(rows(&attention, Role::Key, 0, 2), (name, 28..32));
    assert_eq!(rows(&attention, Role::Value, 0, 0), (name, 8..12));
}

#[test]
fn falcon_has_three_orders() {
    let name = "transformer.h.0.self_attention.query_key_value";
    let falcon = |new: bool, multi_query: bool, groups: usize, out: usize| {
        let config = json!({
            "model_type": "falcon", "num_hidden_layers": 1, "num_attention_heads": 4, "hidden_size": 8,
            "new_decoder_architecture": new, "multi_query": multi_query, "num_kv_heads": groups,
        });
        one_layer(config, &[(&format!("{name}.weight"), &[out, 8])])
    };
    let groups = falcon(true, true, 2, 16);
    assert_eq!(groups.geometry().layers[0].key_value_heads, 2);
    assert_eq!(rows(&groups, Role::Query, 0, 3), (name, 10..12));
    assert_eq!(rows(&groups, Role::Key, 0, 1), (name, 12..14));
    let one_group = falcon(false, true, 4, 12);
    assert_eq!(rows(&one_group, Role::Query, 0, 3), (name, 6..8));
    assert_eq!(rows(&one_group, Role::Value, 0, 0), (name, 10..12));
    let own_groups = falcon(false, false, 4, 24);
    assert_eq!(rows(&own_groups, Role::Key, 0, 3), (name, 20..22));
}

#[test]
fn blocks_of_a_quarter_of_the_heads() {
    let config = json!({"model_type": "codegen", "n_layer": 1, "n_head": 8, "n_embd": 16});
    let name = "transformer.h.0.attn.qkv_proj";
    let attention = one_layer(config, &[(&format!("{name}.weight"), &[48, 16])]);
    // Two heads a block: queries, values, keys.
    assert_eq!(rows(&attention, Role::Query, 0, 3), (name, 14..16));
    assert_eq!(rows(&attention, Role::Value, 0, 3), (name, 18..20));
    assert_eq!(rows(&attention, Role::Key, 0, 3), (name, 22..24));
}

#[test]
fn gates_belong_to_no_head() {
    let (mut config, mut tensors) = llama();
    config["model_type"] = json!("qwen3_next");
    for layer in 0..2 {
        tensors.insert(format!("model.layers.{layer}.self_attn.q_proj.weight"), vec![48, 16]);
    }
    let attention = resolve(&config, &tensors).unwrap();
    assert_eq!(rows(&attention, Role::Query, 1, 2), ("model.layers.1.self_attn.q_proj", 16..20));
}

#[test]
fn keys_and_values_from_a_latent_vector() {
    let config = json!({
        "model_type": "deepseek_v3", "num_hidden_layers": 1, "num_attention_heads": 3, "hidden_size": 12,
        "num_key_value_heads": 1, "head_dim": 99, "qk_nope_head_dim": 4, "qk_rope_head_dim": 2, "v_head_dim": 5,
    });
    let attention = one_layer(
        config,
        &[
            ("model.layers.0.self_attn.q_a_proj.weight", &[7, 12]),
            ("model.layers.0.self_attn.q_b_proj.weight", &[18, 7]),
            ("model.layers.0.self_attn.kv_b_proj.weight", &[27, 9]),
        ],
    );
    let layer = &attention.geometry().layers[0];
    assert_eq!((layer.query_heads, layer.key_value_heads), (3, 3));
    assert_eq!(layer.query, MatrixSize { rows: 6, columns: 7 });
    assert_eq!(layer.key, Some(MatrixSize { rows: 4, columns: 9 }));
    assert_eq!(layer.value, Some(MatrixSize { rows: 5, columns: 9 }));
    assert_eq!(rows(&attention, Role::Query, 0, 1), ("model.layers.0.self_attn.q_b_proj", 6..12));
    assert_eq!(rows(&attention, Role::Key, 0, 1), ("model.layers.0.self_attn.kv_b_proj", 9..13));
    assert_eq!(rows(&attention, Role::Value, 0, 1), ("model.layers.0.self_attn.kv_b_proj", 13..18));
}

#[test]
fn layers_that_use_earlier_keys_and_values() {
    let config = json!({
        "model_type": "gemma4_text", "num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 12,
        "num_key_value_heads": 2, "head_dim": 3, "num_kv_shared_layers": 1, "attention_k_eq_v": true,
    });
    let mut tensors = Tensors::new();
    let mut insert = |layer: usize, name: &str, shape: &[usize]| {
        tensors.insert(format!("model.layers.{layer}.self_attn.{name}.weight"), shape.to_vec());
    };
    for (layer, size) in [(0, 3), (1, 6), (2, 3)] {
        insert(layer, "q_proj", &[4 * size, 12]);
        insert(layer, "q_norm", &[size]);
    }
    insert(0, "k_proj", &[6, 12]);
    insert(0, "v_proj", &[6, 12]);
    insert(1, "k_proj", &[6, 12]);
    insert(2, "k_proj", &[6, 12]); // a dead one, as older files have them
    let attention = resolve(&config, &tensors).unwrap();
    let layers = &attention.geometry().layers;
    assert_eq!(layers[0].value, Some(MatrixSize { rows: 3, columns: 12 }));
    assert!(!layers[0].keys_are_values && layers[1].keys_are_values);
    assert_eq!((layers[1].key_value_heads, layers[1].query.rows), (1, 6));
    assert_eq!(rows(&attention, Role::Value, 1, 0), ("model.layers.1.self_attn.k_proj", 0..6));
    assert_eq!((layers[2].key, layers[2].value), (None, None));
    assert_eq!(attention.projection_rows(Role::Key, 2, 0), None);

    let mut unlike = config.clone();
    unlike["attention_k_eq_v"] = json!(false);
    assert_says(&refusal(&unlike, &tensors), &["tensor `model.layers.1.self_attn.v_proj.weight` is missing"]);
}

#[test]
fn each_stack_of_an_encoder_and_a_decoder() {
    let config = json!({
        "model_type": "bart", "encoder_layers": 1, "decoder_layers": 2, "num_hidden_layers": 1, "d_model": 12,
        "encoder_attention_heads": 2, "decoder_attention_heads": 3,
    });
    let mut tensors = Tensors::new();
    for attention in
        ["encoder.layers.0.self_attn", "decoder.layers.0.self_attn", "decoder.layers.1.self_attn"]
    {
        for name in ["q_proj", "k_proj", "v_proj"] {
            tensors.insert(format!("model.{attention}.{name}.weight"), vec![12, 12]);
        }
    }
    for layer in 0..2 {
        for (name, columns) in [("q_proj", 12), ("k_proj", 20), ("v_proj", 20)] {
            tensors.insert(
                format!("model.decoder.layers.{layer}.encoder_attn.{name}.weight"),
                vec![12, columns],
            );
        }
    }
    let heads = |component| {
        let attention = resolve_component(&config, &tensors, component).unwrap();
        let geometry = attention.geometry();
        (geometry.component, geometry.layers.len(), geometry.width())
    };
    assert_eq!(heads(None), (Component::Decoder, 2, 3));
    assert_eq!(heads(Some(Component::Decoder)), (Component::Decoder, 2, 3));
    assert_eq!(heads(Some(Component::Encoder)), (Component::Encoder, 1, 2));
    assert_eq!(heads(Some(Component::Cross)), (Component::Cross, 2, 3));
    let Err(Error::Model { problem, .. }) = resolve_component(&config, &tensors, Some(Component::Vision))
    else {
        panic!("not refused")
    };
    assert_says(&problem, &["no attention stack `vision`", "there is decoder, encoder, cross"]);
}

#[test]
fn layers_without_softmax_attention_are_omissions() {
    let (mut config, mut tensors) = llama();
    config["model_type"] = json!("jamba");
    config["num_hidden_layers"] = json!(4);
    tensors.insert("model.layers.2.mamba.A_log".to_owned(), vec![16, 4]);
    tensors.extend(separate("model.", 4).into_iter().filter(|(name, _)| name.contains("layers.3.")));
    tensors.insert("model.layers.3.self_attn.A_log".to_owned(), vec![6]);
    let attention = resolve(&config, &tensors).unwrap();
    assert_eq!(numbers(&attention), [0, 1]);
    let left_out: Vec<String> =
        attention.omissions().iter().map(|it| format!("{}: {}", it.what, it.why)).collect();
    assert_eq!(
        left_out,
        [
            "layer 2: it has no attention; its parts are `mamba`",
            "layer 3: `A_log` beside it says that this is linear attention"
        ]
    );
    config["model_type"] = json!("llama");
    assert_says(&refusal(&config, &tensors), &["tensor `model.layers.2.self_attn.q_proj.weight` is missing"]);
}

#[test]
fn an_encoder_whose_heads_have_groups_of_their_own() {
    let config = json!({
        "model_type": "bert", "num_hidden_layers": 1, "num_attention_heads": 3, "hidden_size": 12,
    });
    let tensors = ["query", "key", "value"]
        .map(|name| (format!("bert.encoder.layer.0.attention.self.{name}.weight"), vec![12, 12]));
    let attention = resolve(&config, &Tensors::from(tensors)).unwrap();
    let layer = &attention.geometry().layers[0];
    assert_eq!((layer.key_value_heads, layer.query.rows), (3, 4));
    assert_eq!(rows(&attention, Role::Key, 0, 2).1, 8..12);
}

#[test]
fn absent_and_null_mean_the_same() {
    for absent in [false, true] {
        let (mut config, _) = llama();
        config["hidden_size"] = json!(24);
        for key in ["num_key_value_heads", "head_dim", "text_config", "per_layer_config"] {
            config[key] = Value::Null;
            if absent {
                config.as_object_mut().unwrap().remove(key);
            }
        }
        let tensors = ["q", "k", "v"].iter().flat_map(|name| {
            (0..2).map(move |layer| (format!("layers.{layer}.self_attn.{name}_proj.weight"), vec![24, 24]))
        });
        let attention = resolve(&config, &tensors.collect()).unwrap();
        let layer = &attention.geometry().layers[0];
        assert_eq!((layer.key_value_heads, layer.query.rows), (6, 4));
    }
}

#[test]
fn the_text_model_of_a_larger_one() {
    let (mut inner, _) = llama();
    inner["model_type"] = json!("gemma3_text");
    let config = json!({"model_type": "gemma3", "text_config": inner, "hidden_size": 1});
    for prefix in ["language_model.model.", "model.language_model.", "language_model."] {
        let mut tensors = separate(prefix, 2);
        for tower in ["vision_tower.", "model.vision_tower.encoder.", "audio.model.", "mtp."] {
            tensors.extend(separate(tower, 5));
        }
        let attention = resolve(&config, &tensors).unwrap();
        assert_eq!(attention.geometry().model_type, "gemma3");
        assert_eq!(attention.owner_type(), "gemma3_text");
        assert!(attention.projections().iter().all(|module| module.name.starts_with(prefix)));
        let omitted: Vec<&str> = attention.omissions().iter().map(|it| &*it.what).collect();
        assert!(omitted.contains(&"mtp.layers.# (5 layers)"), "{omitted:?}");
    }
}

#[test]
fn layers_beyond_those_of_the_configuration_are_omissions() {
    let (config, _) = llama();
    let attention = resolve(&config, &separate("model.", 3)).unwrap();
    assert_eq!(numbers(&attention), [0, 1]);
    assert_eq!(attention.omissions().len(), 1);
    assert_eq!(attention.omissions()[0].what, "1 layers from number 2 on");
}

#[test]
#[should_panic(expected = "there is no key matrix 2")]
fn a_group_that_does_not_exist_panics() {
    let (config, tensors) = llama();
    let _ = resolve(&config, &tensors).unwrap().projection_rows(Role::Key, 0, 2);
}

#[test]
fn a_model_type_is_known_by_its_layout() {
    let layout = |model_type| {
        let has =
            |layout: &&alps::attention::Layout| layout.model_types().any(|(_, known)| known == model_type);
        layouts().unwrap().iter().find(has).map(|layout| layout.name())
    };
    assert_eq!(layout("qwen3"), Some("separate"));
    assert_eq!(layout("roberta"), Some("cross"));
    assert_eq!(layout("gpt2"), Some("transposed"));
    assert_eq!(layout("deepseek_v3"), Some("latent"));
    // Queries that are experts.
    assert_eq!(layout("jetmoe"), None);
    assert!(layouts().unwrap().iter().all(|layout| !layout.description().is_empty()));
}

// What is refused.

#[test]
fn a_model_type_of_no_layout() {
    let mut tensors = separate("model.", 32);
    tensors.insert("model.layers.0.mamba.A_log".to_owned(), vec![3]);
    let problem = refusal(&json!({"model_type": "jetmoe\n"}), &tensors);
    assert_says(
        &problem,
        &[
            "the model type `jetmoe\\n` is in no known layout",
            "its attention tensors seem to be `model.layers.{layer}.self_attn.k_proj.weight`, `model.layers",
            "the known layouts are `albert`, `chatglm`",
            "`alps layouts` lists their model types",
            "CONTRIBUTING.md says how to add a layout",
        ],
    );
    assert_eq!(problem.matches("q_proj").count(), 1);
    assert!(!problem.contains("mamba"));
}

#[test]
fn names_found_are_listed_only_so_far() {
    let tensors: Tensors = (0..20).map(|number| (format!("attention_{number:02}"), vec![1])).collect();
    let problem = refusal(&json!({"model_type": "x"}), &tensors);
    assert_says(&problem, &["`attention_06`, `attention_07` and 12 more"]);
    assert!(!problem.contains("attention_08"));
}

#[test]
fn no_model_type() {
    let (_, tensors) = llama();
    for config in [json!({}), json!({"model_type": null})] {
        let problem = refusal(&config, &tensors);
        assert_says(&problem, &["the configuration has no `model_type`", "q_proj", "CONTRIBUTING.md"]);
    }
    assert_says(
        &refusal(&json!({"model_type": 3}), &tensors),
        &["`model_type` should be a text, but is `3`"],
    );
    let problem = refusal(&json!({"model_type": "x"}), &Tensors::from([("weight".to_owned(), vec![])]));
    assert_says(&problem, &["of its 1 tensors none has `attn` or `attention` in its name"]);
}

#[test]
fn a_text_model_of_another_type() {
    let (mut inner, tensors) = llama();
    inner["model_type"] = json!("jetmoe");
    let config = json!({"model_type": "llava", "text_config": inner});
    let problem = refusal(&config, &tensors);
    assert_says(
        &problem,
        &["`llava` has only the attention of the models within", "none is in a known layout: `jetmoe`"],
    );
    let config = json!({"model_type": "llava", "text_config": {"model_type": 1}});
    let problem = refusal(&config, &tensors);
    assert_says(
        &problem,
        &["`model_type` in `text_config` in the configuration should be a text, but is `1`"],
    );
}

#[test]
fn a_text_config_that_is_no_object() {
    let problem = refusal_of_llama_with("text_config", json!([1]));
    assert_eq!(problem, "`text_config` should be an object, but is a list");
}

#[test]
fn a_missing_key() {
    for key in ["num_hidden_layers", "num_attention_heads", "hidden_size"] {
        let problem = refusal_of_llama_with(key, Value::Null);
        assert_says(&problem, &["the configuration does not say", &format!("`{key}`")]);
    }
    let (mut inner, tensors) = llama();
    inner["model_type"] = json!("cohere");
    inner.as_object_mut().unwrap().remove("num_attention_heads");
    let problem = refusal(&json!({"model_type": "llava", "text_config": inner}), &tensors);
    assert_says(&problem, &["`text_config` in the configuration does not say the number of heads"]);
}

#[test]
fn a_value_that_is_no_count() {
    let keys = ["num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size"];
    let values = [
        (json!(0), "`0`"),
        (json!(-8), "`-8`"),
        (json!(8.0), "`8.0`"),
        (json!("8"), "`\\\"8\\\"`"),
        (json!(true), "`true`"),
        (json!([8.5, 8]), "8.5"),
        (json!({"0": 8}), "an object"),
        (json!((1_u64 << 31) + 1), "`2147483649`"),
        (json!(u64::MAX), "`18446744073709551615`"),
        (json!(1e300), "`1e+300`"),
    ];
    for key in keys {
        for (value, shown) in &values {
            let problem = refusal_of_llama_with(key, value.clone());
            let expected = format!(
                "`{key}` in the configuration should be a whole number from 1 to 2147483648, but is "
            );
            assert!(problem.starts_with(&expected), "{problem}");
            assert!(problem.contains(shown) || value.is_string() || value.is_array(), "{problem}");
        }
    }
    let problem = refusal_of_llama_with("num_attention_heads", json!([8, 8, 8]));
    assert_says(&problem, &["`num_attention_heads` in the configuration is a list of 3 values for 2 layers"]);
}

#[test]
fn heads_that_cannot_be_shared_out() {
    assert_says(
        &refusal_of_llama_with("num_key_value_heads", json!(4)),
        &["the configuration says that 6 query heads share 4 key/value heads, but 6 is not a multiple of 4"],
    );
    assert_says(&refusal_of_llama_with("num_key_value_heads", json!(12)), &["6 is not a multiple of 12"]);
}

#[test]
fn a_head_size_that_is_neither_given_nor_implied() {
    assert_says(
        &refusal_of_llama_with("head_dim", Value::Null),
        &[
            "the configuration does not say the size of a head (under `head_dim` or",
            "and gives a hidden size of 16, which is not a multiple of the 6 query heads",
        ],
    );
}

#[test]
fn layers_with_sizes_of_their_own() {
    let (mut config, mut tensors) = llama();
    config["per_layer_config"] = json!({"01": {"num_attention_heads": 3, "num_key_value_heads": 1}});
    assert_says(&refusal(&config, &tensors), &["(3 query heads of size 4, hidden size 16)"]);
    tensors.insert("model.layers.1.self_attn.q_proj.weight".to_owned(), vec![12, 16]);
    for name in ["k_proj", "v_proj"] {
        tensors.insert(format!("model.layers.1.self_attn.{name}.weight"), vec![4, 16]);
    }
    let attention = resolve(&config, &tensors).unwrap();
    let heads: Vec<_> =
        attention.geometry().layers.iter().map(|layer| (layer.query_heads, layer.key_value_heads)).collect();
    assert_eq!(heads, [(6, 2), (3, 1)]);
    assert_eq!(attention.geometry().width(), 6);
}

#[test]
fn a_shape_that_contradicts_the_configuration() {
    let (config, mut tensors) = llama();
    tensors.insert("model.layers.1.self_attn.k_proj.weight".to_owned(), vec![16, 16]);
    assert_eq!(
        refusal(&config, &tensors),
        "tensor `model.layers.1.self_attn.k_proj.weight` should have the shape [8, 16] by the configuration \
         (2 key/value heads of size 4, hidden size 16), but has the shape [16, 16]"
    );
    let shapes =
        [vec![], vec![24], vec![16, 24], vec![24, 16, 2], vec![1, 24, 16], vec![48, 16], vec![0, 16]];
    for shape in shapes {
        tensors.insert("model.layers.0.self_attn.q_proj.weight".to_owned(), shape.clone());
        let problem = refusal(&config, &tensors);
        assert_says(
            &problem,
            &["(6 query heads of size 4, hidden size 16)", &format!("the shape {shape:?}")],
        );
    }
    let (config, mut tensors) = gpt2();
    tensors.insert("h.0.attn.c_attn.weight".to_owned(), vec![36, 12]);
    assert_says(
        &refusal(&config, &tensors),
        &[
            "[12, 36]",
            "(3 query heads of size 4, 3 key heads of size 4, 3 value heads of size 4, hidden size 12)",
        ],
    );
}

#[test]
fn a_head_size_other_than_that_of_the_tensors() {
    let problem = refusal_of_llama_with("head_dim", json!(8));
    assert_says(&problem, &["`model.layers.0.self_attn.q_proj.weight` should have the shape [48, 16]"]);
}

#[test]
fn sizes_whose_product_overflows() {
    let (mut config, tensors) = llama();
    for key in ["num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size", "num_hidden_layers"]
    {
        config[key] = json!(1_u64 << 31);
    }
    let problem = refusal(&config, &tensors);
    assert_says(
        &problem,
        &[
            "no tensor is as large as `model.layers.0.self_attn.q_proj` would have to be (2147483648 query heads",
        ],
    );
}

#[test]
fn a_missing_tensor() {
    let (config, mut tensors) = llama();
    tensors.remove("model.layers.1.self_attn.v_proj.weight");
    assert_says(
        &refusal(&config, &tensors),
        &[
            "tensor `model.layers.1.self_attn.v_proj.weight` is missing",
            "there are 2 layers (`num_hidden_layers`)",
            "all of which have attention in a model of type `llama`",
        ],
    );
    let problem = refusal_of_llama_with("num_hidden_layers", json!(1_u64 << 31));
    assert_says(&problem, &["tensor `model.layers.2.self_attn.q_proj.weight` is missing"]);
}

#[test]
fn a_missing_tensor_where_the_tensors_give_the_number_of_layers() {
    let config = json!({"model_type": "mobilevit", "num_attention_heads": 2, "hidden_sizes": [4]});
    let mut tensors = Tensors::new();
    for (layer, name) in [(0, "query"), (0, "key"), (0, "value"), (1, "query"), (1, "key")] {
        let name = format!("encoder.layer.2.transformer.layer.{layer}.attention.attention.{name}.weight");
        tensors.insert(name, vec![4, 4]);
    }
    let said = [
        "value.weight` is missing, although all layers up to the last one have attention in a model of type",
    ];
    assert_says(&refusal(&config, &tensors), &said);
}

#[test]
fn a_layer_is_numbered_in_one_way_only() {
    let (config, mut tensors) = llama();
    let shape = tensors.remove("model.layers.1.self_attn.q_proj.weight").unwrap();
    tensors.insert("model.layers.01.self_attn.q_proj.weight".to_owned(), shape);
    assert_says(&refusal(&config, &tensors), &["tensor `model.layers.1.self_attn.q_proj.weight` is missing"]);
}

#[test]
fn attention_of_another_tower() {
    let (config, _) = llama();
    assert_says(
        &refusal(&config, &separate("vision_tower.", 2)),
        &[
            "a model of type `llama` should have an attention stack `decoder`, with tensors such as",
            "`self_attn.q_proj`",
            "but there is nothing else",
            "`vision_tower.layers.{layer}.self_attn.k_proj.weight`",
        ],
    );
    let problem = refusal(&config, &Tensors::new());
    assert_says(&problem, &["of its 0 tensors none has `attn`"]);
}

#[test]
fn attention_under_several_prefixes() {
    let (config, mut tensors) = llama();
    tensors.extend(separate("language_model.", 2));
    assert_says(
        &refusal(&config, &tensors),
        &[
            "there are 2 attention stacks that could be the decoder's",
            "`language_model.layers.#.self_attn`, `model.layers.#.self_attn`",
        ],
    );
}

// What holds for all models.

/// Asserts that no two matrices share a row (or column) and that all are within their tensors. Returns the number of
/// rows that belong to no head.
fn assert_apart(attention: &Attention, tensors: &Tensors) -> usize {
    let mut owners: Vec<Vec<usize>> = Vec::new();
    for module in attention.projections() {
        let weight = format!("{}.weight", module.name);
        let shape = tensors.get(&weight).unwrap_or_else(|| &tensors[&module.name]);
        let (out, columns) = match module.orientation {
            Orientation::OutIn => (shape[0], shape[1]),
            Orientation::InOut => (shape[1..].iter().product(), shape[0]),
        };
        assert_eq!((module.out_features, module.in_features), (out, columns));
        owners.push(vec![0; out]);
    }
    for (row, layer) in attention.geometry().layers.iter().enumerate() {
        for role in Role::ALL {
            if role == Role::Value && layer.keys_are_values {
                continue;
            }
            for index in 0..layer.count(role) {
                let Some(slice) = attention.projection_rows(role, row, index) else { continue };
                assert_eq!(
                    layer.size(role),
                    Some(MatrixSize { rows: slice.rows.len(), columns: slice.projection.in_features })
                );
                owners[slice.index][slice.rows].iter_mut().for_each(|count| *count += 1);
            }
        }
    }
    assert!(owners.iter().flatten().all(|count| *count <= 1), "{owners:?}");
    owners.iter().flatten().filter(|count| **count == 0).count()
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (0_u64..8).prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
        prop::sample::select(vec!["llama", "bert", "gpt2", "llava", "jetmoe"]).prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 24, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            any_object(inner).prop_map(Value::Object),
        ]
    })
}

fn any_object(value: impl Strategy<Value = Value>) -> impl Strategy<Value = Map<String, Value>> {
    let keys = vec![
        "model_type",
        "text_config",
        "per_layer_config",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "hidden_size",
        "n_layer",
        "n_head",
        "n_embd",
    ];
    let key = prop_oneof![9 => prop::sample::select(keys).prop_map(str::to_owned), 1 => ".{0,8}"];
    prop::collection::btree_map(key, value, 0..11).prop_map(|object| object.into_iter().collect())
}

fn any_tensors() -> impl Strategy<Value = Tensors> {
    let part = prop::sample::select(vec![
        "",
        ".",
        "model.",
        "h.",
        "layers.",
        "encoder.layer.",
        "0",
        "1",
        "99999999999999999999",
        ".self_attn.",
        ".attn.",
        ".attention.self.",
        "q_proj",
        "k_proj",
        "v_proj",
        "query",
        "c_attn",
        ".weight",
        "é",
    ]);
    let name = prop::collection::vec(part, 0..7).prop_map(|parts| parts.concat());
    let size = prop_oneof![0_usize..20, any::<usize>()];
    prop::collection::btree_map(name, prop::collection::vec(size, 0..4), 0..20)
}

proptest! {
    #[test]
    fn every_row_belongs_to_one_head(
        shape in model_shapes(4, 5, 5, 6, 20),
        nested in any::<bool>(),
        prefix in 0_usize..8,
    ) {
        let section = shape.config(ModelType::Llama);
        let config = if nested { json!({"model_type": "llava", "text_config": section}) } else { section };
        let prefix = ["", "model.", "language_model.model.", "model.language_model."][prefix % 4];
        let tensors = shape.tensor_shapes(ModelType::Llama, prefix);
        let attention = resolve(&config, &tensors).unwrap();
        prop_assert_eq!(assert_apart(&attention, &tensors), 0);
        let (geometry, heads) = (&attention.geometry().layers[0], shape.heads());
        for head in 0..heads {
            prop_assert_eq!(geometry.group_of(head), head * shape.groups / heads);
            prop_assert!(geometry.heads_of(geometry.group_of(head)).contains(&head));
        }
    }

    #[test]
    fn every_column_belongs_to_one_head(layers in 1_usize..4, groups in 1_usize..9, head_size in 1_usize..6) {
        let hidden_size = groups * head_size;
        let shape = ModelShape { layers, groups, heads_per_group: 1, head_size, hidden_size };
        let tensors = shape.tensor_shapes(ModelType::Gpt2, "transformer.");
        let attention = resolve(&shape.config(ModelType::Gpt2), &tensors).unwrap();
        prop_assert_eq!(assert_apart(&attention, &tensors), 0);
    }

    #[test]
    fn nothing_panics(config in any_object(any_json()), tensors in any_tensors()) {
        if let Ok(attention) = resolve(&Value::Object(config), &tensors) {
            assert_apart(&attention, &tensors);
        }
    }

    #[test]
    fn nothing_panics_when_the_type_is_known(
        model_type in prop::sample::select(vec![
            "llama", "bert", "gpt2", "llava", "falcon", "codegen", "deepseek_v3", "gemma4_text", "bart", "swin",
            "xlnet",
        ]),
        mut config in any_object(any_json()),
        tensors in any_tensors(),
    ) {
        config.insert("model_type".to_owned(), Value::from(model_type));
        if let Ok(attention) = resolve(&Value::Object(config), &tensors) {
            assert_apart(&attention, &tensors);
        }
    }
}
