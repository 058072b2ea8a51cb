//! Checkpoints that can be read, and every kind that must not be.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use alps::Error;
use alps::checkpoint::{CONSOLIDATED, Checkpoint, Tensor};
use proptest::prelude::*;
use safetensors::tensor::{Dtype, TensorView};

#[cfg(unix)]
use crate::support::write_sparse_file;
use crate::support::{Folder, StoredTensor, assert_says, file_with_header, safetensors_file};

/// A file of `U8` tensors of 4 bytes each, every one filled with a number of its own: 0, 1, ...
fn file_of(names: &[&str]) -> Vec<u8> {
    let tensor =
        |number: usize| StoredTensor { dtype: Dtype::U8, shape: vec![4], bytes: vec![number as u8; 4] };
    let tensors: Vec<StoredTensor> = (0..names.len()).map(tensor).collect();
    safetensors_file(names.iter().zip(&tensors))
}

/// Opens what must be refused, because of the file at `at`, and gives the reason.
#[track_caller]
fn refusal_at(path: &Path, at: &Path) -> String {
    match Checkpoint::open(path) {
        Err(Error::Checkpoint { path, problem }) => {
            assert_eq!(path, at, "{problem}");
            problem
        }
        Err(other) => panic!("refused in another way: {other}"),
        Ok(_) => panic!("not refused"),
    }
}

/// The reason why a file of this header is refused.
#[track_caller]
fn refusal_of_header(header: &str, data: usize) -> String {
    refusal_of_bytes(&file_with_header(header, data))
}

#[track_caller]
fn refusal_of_bytes(bytes: &[u8]) -> String {
    let folder = Folder::new();
    let path = folder.write("model.safetensors", bytes);
    refusal_at(folder.path(), &path)
}

/// The reason why an index with this text is refused, beside `model-1.safetensors` with the tensor `a`.
#[track_caller]
fn refusal_of_index(text: &str) -> String {
    let folder = Folder::new();
    folder.write("model-1.safetensors", file_of(&["a"]));
    let index = folder.write("model.safetensors.index.json", text);
    refusal_at(folder.path(), &index)
}

fn names(checkpoint: &Checkpoint) -> Vec<&str> {
    checkpoint.tensors().map(|(name, _)| name).collect()
}

fn bytes_of(checkpoint: &Checkpoint, name: &str) -> Vec<u8> {
    let tensor = checkpoint.tensor(name).unwrap();
    let mut bytes = vec![0; tensor.length as usize];
    checkpoint.read_at(tensor, 0, &mut bytes).unwrap();
    bytes
}

// What is read.

#[test]
fn what_safetensors_writes_is_read_back() {
    let data: Vec<u8> = (0..=255).collect();
    let tensors = [
        ("scalar", Dtype::F64, vec![], 8..16),
        ("empty", Dtype::F32, vec![3, 0], 0..0),
        ("half", Dtype::BF16, vec![2, 3], 20..32),
        ("six bits", Dtype::F6_E2M3, vec![4], 40..43),
        ("größe", Dtype::I64, vec![2, 2], 100..132),
    ];
    let views = tensors.iter().map(|(name, dtype, shape, range)| {
        (*name, TensorView::new(*dtype, shape.clone(), &data[range.clone()]).unwrap())
    });
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let folder = Folder::new();
    let path = folder.write("model.safetensors", safetensors::serialize(views, Some(metadata)).unwrap());

    for given in [folder.path(), &path] {
        let checkpoint = Checkpoint::open(given).unwrap();
        assert_eq!(checkpoint.path(), given);
        assert_eq!(checkpoint.files().collect::<Vec<_>>(), [&*path]);
        assert_eq!(names(&checkpoint), ["empty", "größe", "half", "scalar", "six bits"]);
        for (name, dtype, shape, range) in &tensors {
            let tensor = checkpoint.tensor(name).unwrap();
            assert_eq!((tensor.dtype, &*tensor.shape), (*dtype, &**shape));
            assert_eq!(bytes_of(&checkpoint, name), data[range.clone()], "{name}");
            assert_eq!(checkpoint.file_of(tensor), path);
        }
        assert_eq!(checkpoint.tensor("none"), None);
    }
}

#[test]
fn a_part_of_a_tensor_is_read() {
    let folder = Folder::new();
    let path = folder.write(
        "model.safetensors",
        file_with_header(r#"{"a":{"dtype":"U8","shape":[10],"data_offsets":[0,10]}}"#, 10),
    );
    let checkpoint = Checkpoint::open(path).unwrap();
    let tensor = checkpoint.tensor("a").unwrap();
    let mut buffer = [0; 3];
    checkpoint.read_at(tensor, 4, &mut buffer).unwrap();
    assert_eq!(buffer, [4, 5, 6]);
    checkpoint.read_at(tensor, 7, &mut buffer).unwrap();
    assert_eq!(buffer, [7, 8, 9]);
    checkpoint.read_at(tensor, 10, &mut []).unwrap();
}

#[test]
fn a_file_without_tensors_is_a_file() {
    let folder = Folder::new();
    folder.write("model.safetensors", file_with_header("{}", 0));
    assert_eq!(Checkpoint::open(folder.path()).unwrap().tensors().len(), 0);
}

#[test]
fn threads_read_at_once() {
    let folder = Folder::new();
    let names: Vec<String> = (0..64).map(|number| format!("{number:02}")).collect();
    let names: Vec<&str> = names.iter().map(|name| &**name).collect();
    folder.write("model.safetensors", file_of(&names));
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= 64 * 50 {
                        break;
                    }
                    assert_eq!(bytes_of(&checkpoint, names[number % 64]), [(number % 64) as u8; 4]);
                }
            });
        }
    });
    assert!(next.into_inner() >= 64 * 50);
}

#[cfg(unix)] // elsewhere the disk would have to have the room
#[test]
fn a_sparse_file_of_a_tebibyte_is_read_near_its_end() {
    let shape = [1 << 20, 1 << 19]; // of BF16: exactly one TiB
    let length = 1u64 << 40;
    let header = format!(
        r#"{{"a":{{"dtype":"BF16","shape":[{},{}],"data_offsets":[0,{length}]}}}}"#,
        shape[0], shape[1]
    );
    let folder = Folder::new();
    let path = folder.path().join("model.safetensors");
    let sparse = write_sparse_file(&path, &header, length);
    let end = 8 + header.len() as u64 + length;
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"near the end", end - 100).unwrap();

    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let tensor = checkpoint.tensor("a").unwrap();
    assert_eq!(tensor.length, length);
    let mut buffer = [0; 12];
    checkpoint.read_at(tensor, length - 100, &mut buffer).unwrap();
    assert_eq!(&buffer, b"near the end");
}

#[test]
fn an_index_counts_only_what_it_names() {
    let folder = Folder::new();
    let first = folder.write("one.safetensors", file_of(&["a", "b", "not indexed"]));
    let second = folder.write("two.safetensors", file_of(&["a", "c"]));
    folder.write("three.safetensors", b"no shard of the index");
    let text = r#"{"metadata": {"total_size": 12}, "weight_map":
        {"c": "two.safetensors", "a": "one.safetensors", "b": "one.safetensors"}}"#;
    let index = folder.write("model.safetensors.index.json", text);

    for given in [folder.path(), &index] {
        let checkpoint = Checkpoint::open(given).unwrap();
        assert_eq!(checkpoint.files().collect::<Vec<_>>(), [&*first, &*second]);
        assert_eq!(names(&checkpoint), ["a", "b", "c"]);
        assert_eq!(bytes_of(&checkpoint, "a"), [0; 4]);
        assert_eq!(bytes_of(&checkpoint, "b"), [1; 4]);
        assert_eq!(bytes_of(&checkpoint, "c"), [1; 4]);
        assert_eq!(checkpoint.file_of(checkpoint.tensor("c").unwrap()), second);
    }
}

#[test]
fn the_whole_file_goes_before_the_index() {
    let folder = Folder::new();
    folder.write("model.safetensors", file_of(&["whole"]));
    folder.write("model.safetensors.index.json", "not even JSON");
    folder.write("consolidated.safetensors", b"not even safetensors");
    folder.write("pytorch_model.bin", b"never opened");
    assert_eq!(names(&Checkpoint::open(folder.path()).unwrap()), ["whole"]);
}

#[test]
fn a_file_that_the_configuration_names_goes_before_all() {
    let folder = Folder::new();
    folder.write("model.safetensors", file_of(&["usual"]));
    folder.write("other.safetensors", file_of(&["named"]));
    folder.write("config.json", r#"{"transformers_weights": "other.safetensors"}"#);
    assert_eq!(names(&Checkpoint::open(folder.path()).unwrap()), ["named"]);

    let config = folder.write("config.json", r#"{"transformers_weights": "../other.safetensors"}"#);
    assert_says(&refusal_at(folder.path(), &config), &["transformers_weights", "../other.safetensors"]);
}

#[test]
fn a_lone_file_of_another_name_is_taken() {
    let folder = Folder::new();
    folder.write("weights.safetensors", file_of(&["lone"]));
    folder.write("._weights.safetensors", b"what macOS leaves on foreign disks");
    folder.write("optimizer.pt", b"never opened");
    assert_eq!(names(&Checkpoint::open(folder.path()).unwrap()), ["lone"]);
}

#[test]
fn a_lone_variant_is_taken_as_one_file_or_as_shards() {
    let folder = Folder::new();
    let single = folder.write("model.fp16.safetensors", file_of(&["single"]));
    assert_eq!(Checkpoint::open(folder.path()).unwrap().entry_file(), single);

    let folder = Folder::new();
    folder.write("model.fp16-00001-of-00002.safetensors", file_of(&["a"]));
    folder.write("model.fp16-00002-of-00002.safetensors", file_of(&["b"]));
    let text = r#"{"weight_map": {"a": "model.fp16-00001-of-00002.safetensors",
        "b": "model.fp16-00002-of-00002.safetensors"}}"#;
    let index = folder.write("model.safetensors.index.fp16.json", text);
    for given in [folder.path(), &index] {
        let checkpoint = Checkpoint::open(given).unwrap();
        assert_eq!(checkpoint.entry_file(), index);
        assert_eq!(names(&checkpoint), ["a", "b"]);
    }

    // The usual names go before, as they do for transformers.
    let usual = folder.write("model.safetensors", file_of(&["usual"]));
    assert_eq!(Checkpoint::open(folder.path()).unwrap().entry_file(), usual);
}

#[test]
fn several_variants_are_refused() {
    let folder = Folder::new();
    folder.write("model.fp16.safetensors", file_of(&["a"]));
    folder.write("model.fp16-00001-of-00001.safetensors", file_of(&["a"]));
    folder.write("model.safetensors.index.bf16.json", r#"{"weight_map": {"a": "model.fp16.safetensors"}}"#);
    assert_says(
        &refusal_at(folder.path(), folder.path()),
        &["found 3 checkpoints: ", "`model.safetensors.index.bf16.json`", "pass the path of the one"],
    );
}

#[test]
fn consolidated_weights_have_a_configuration_of_their_own() {
    for name in ["consolidated.safetensors", "consolidated.00.safetensors"] {
        let folder = Folder::new();
        let path = folder.write(name, file_of(&["layers.0.attention.wq.weight"]));
        folder.write("config.json", r#"{"model_type": "mistral"}"#);
        folder.write("params.json", r#"{"dim": 64, "n_layers": 1}"#);
        for given in [folder.path(), &path] {
            let checkpoint = Checkpoint::open(given).unwrap();
            let config = checkpoint.config().unwrap();
            assert_eq!((&config["model_type"], &config["dim"]), (&CONSOLIDATED.into(), &64.into()));
        }
        // Beside weights of the usual form they are passed over, as transformers does.
        folder.write("model.safetensors", file_of(&["usual"]));
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        assert_eq!(names(&checkpoint), ["usual"]);
        assert_eq!(checkpoint.config().unwrap()["model_type"], "mistral");
    }
}

#[test]
fn consolidated_weights_without_their_configuration_are_refused() {
    let folder = Folder::new();
    folder.write("consolidated.safetensors", file_of(&["layers.0.attention.wq.weight"]));
    folder.write("config.json", r#"{"model_type": "mistral"}"#);
    match Checkpoint::open(folder.path()).unwrap().config() {
        Err(Error::Checkpoint { problem, .. }) => assert_says(&problem, &["params.json"]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn parts_for_several_devices_are_refused() {
    let folder = Folder::new();
    for part in 0..2 {
        folder.write(&format!("consolidated.0{part}.safetensors"), file_of(&["a"]));
    }
    assert_says(
        &refusal_at(folder.path(), folder.path()),
        &["`consolidated.01.safetensors` is one of the parts", "several devices"],
    );
}

#[cfg(unix)]
#[test]
fn links_lead_out_of_the_folder_as_in_a_cache_of_downloads() {
    let blobs = Folder::new();
    let folder = Folder::new();
    let link = |name: &str, bytes: &[u8]| {
        let blob = blobs.write(&format!("blob of {name}"), bytes);
        std::os::unix::fs::symlink(blob, folder.path().join(name)).unwrap();
    };
    link("shard.safetensors", &file_of(&["a"]));
    link("model.safetensors.index.json", br#"{"weight_map": {"a": "shard.safetensors"}}"#);
    link("config.json", br#"{"model_type": "llama"}"#);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(bytes_of(&checkpoint, "a"), [0; 4]);
    assert_eq!(checkpoint.config().unwrap()["model_type"], "llama");
}

// The configuration.

#[test]
fn the_configuration_is_beside_the_weights() {
    let folder = Folder::new();
    let path = folder.write("model.safetensors", file_of(&["a"]));
    folder.write("config.json", r#"{"hidden_size": 64, "time_step_limit": [0.0, Infinity]}"#);
    for given in [folder.path(), &path] {
        let config = Checkpoint::open(given).unwrap().config().unwrap();
        assert_eq!(config["hidden_size"], 64);
        assert_eq!(config["time_step_limit"][1], "Infinity");
    }
}

#[test]
fn a_missing_configuration_is_named() {
    let folder = Folder::new();
    folder.write("model.safetensors", file_of(&["a"]));
    match Checkpoint::open(folder.path()).unwrap().config() {
        Err(Error::Checkpoint { path, problem }) => {
            assert_eq!(path, folder.path());
            assert_says(&problem, &["heads", folder.path().join("config.json").to_str().unwrap()]);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_configuration_that_is_no_object_is_refused() {
    for (text, reason) in [
        ("[1]", "invalid type: sequence, expected a map"),
        ("{\"a\":", "EOF"),
        ("", "EOF"),
        ("\u{feff}{}", "expected value"),
    ] {
        let folder = Folder::new();
        let path = folder.write("model.safetensors", file_of(&["a"]));
        let config = folder.write("config.json", text);
        match Checkpoint::open(path).unwrap().config() {
            Err(Error::Checkpoint { path, problem }) => {
                assert_eq!(path, config);
                assert_says(&problem, &["should be a JSON object", reason]);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_huge_configuration_is_not_read() {
    let folder = Folder::new();
    let path = folder.write("model.safetensors", file_of(&["a"]));
    File::create(folder.path().join("config.json")).unwrap().set_len((8 << 20) + 1).unwrap();
    let error = Checkpoint::open(path).unwrap().config().unwrap_err();
    assert_says(&error.to_string(), &["config.json: ", "8388609 bytes", "8388608"]);
}

// Files that are not safetensors, or not whole.

#[test]
fn a_missing_path_keeps_the_reason_of_the_system() {
    let folder = Folder::new();
    let missing = folder.path().join("none");
    match Checkpoint::open(&missing) {
        Err(Error::Io { path, source }) => {
            assert_eq!(path, missing);
            assert_eq!(source.kind(), std::io::ErrorKind::NotFound);
        }
        other => panic!("{other:?}"),
    }
}

#[cfg(unix)]
#[test]
fn a_dangling_link_is_not_passed_over() {
    let folder = Folder::new();
    let link = folder.path().join("model.safetensors");
    std::os::unix::fs::symlink(folder.path().join("not downloaded"), &link).unwrap();
    folder.write("other.safetensors", file_of(&["other"]));
    match Checkpoint::open(folder.path()) {
        Err(Error::Io { path, source }) => {
            assert_eq!(path, link);
            assert_eq!(source.kind(), std::io::ErrorKind::NotFound);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_folder_in_place_of_a_file_is_refused() {
    let folder = Folder::new();
    let path = folder.path().join("model.safetensors");
    fs::create_dir(&path).unwrap();
    assert_says(&refusal_at(folder.path(), &path), &["regular file"]);
}

#[test]
fn an_empty_file_is_refused() {
    assert_says(&refusal_of_bytes(b""), &["empty", "0 bytes"]);
}

#[test]
fn a_file_cut_inside_the_length_of_the_header_is_refused() {
    assert_says(&refusal_of_bytes(&[1, 0, 0, 0, 0]), &["5 bytes", "fewer than the 8"]);
}

#[test]
fn a_file_cut_inside_the_header_is_refused() {
    let whole = file_of(&["a"]);
    let header = u64::from_le_bytes(whole[..8].try_into().unwrap());
    assert_says(
        &refusal_of_bytes(&whole[..20]),
        &["truncated", &format!("{header} bytes"), "the 20 of the file"],
    );
}

#[test]
fn a_file_cut_inside_the_data_is_refused() {
    let whole = file_of(&["a", "b", "c"]);
    let problem = refusal_of_bytes(&whole[..whole.len() - 6]);
    assert_says(
        &problem,
        &[
            "tensor `b` is at bytes 4 to 8",
            &format!("of {} bytes", whole.len() - 6),
            "only 6 bytes of data",
            "should have 12",
            "truncated",
        ],
    );
}

#[test]
fn every_cut_of_a_file_is_refused() {
    let whole = file_of(&["a", "b"]);
    let header_end = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for length in 1..whole.len() {
        let reason = match length {
            0..8 => format!("the file has {length} bytes"),
            _ if length < header_end => format!("more than the {length} of the file"),
            _ => format!("of {length} bytes, has only {} bytes of data", length - header_end),
        };
        assert_says(&refusal_of_bytes(&whole[..length]), &[&reason, "truncated"]);
    }
}

#[test]
fn a_file_longer_than_its_tensors_is_refused() {
    for more in [1, 5] {
        let mut longer = file_of(&["a"]);
        longer.extend(vec![0; more]);
        let length = format!("of {} bytes, has {} bytes of data", longer.len(), 4 + more);
        let rest = format!("belonging to no tensor: {more}");
        assert_says(&refusal_of_bytes(&longer), &["end at byte 4", &length, &rest]);
    }
}

#[test]
fn a_header_longer_than_the_format_allows_is_refused() {
    let mut bytes = 100_000_001u64.to_le_bytes().to_vec();
    bytes.extend(b"{}");
    assert_says(&refusal_of_bytes(&bytes), &["100000001 bytes", "the 100000000 that the format allows"]);

    bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert_says(&refusal_of_bytes(&bytes), &["18446744073709551615 bytes"]);

    bytes[..8].copy_from_slice(&100_000_000u64.to_le_bytes());
    assert_says(&refusal_of_bytes(&bytes), &["100000000 bytes", "the 10 of the file"]);
}

#[test]
fn a_pointer_of_git_lfs_is_refused() {
    let text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4976698672\n";
    assert_says(&refusal_of_bytes(text.as_bytes()), &["Git LFS", "git lfs pull", "72 bytes"]);
}

#[test]
fn a_pickle_under_the_name_of_safetensors_is_refused() {
    for content in [
        &b"PK\x03\x04\x00\x00\x08\x08\x00\x00"[..],
        b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.",
        b"\x80\x04.",
    ] {
        assert_says(
            &refusal_of_bytes(content),
            &["`model.safetensors` is a pickle file", "safe_serialization=True"],
        );
    }
}

#[test]
fn a_pickle_given_directly_is_refused_by_its_name() {
    for name in ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "model.pkl"] {
        let folder = Folder::new();
        let path = folder.write(name, file_of(&["safetensors, but never looked at"]));
        assert_says(&refusal_at(&path, &path), &[&format!("`{name}`"), "pickle", "safe_serialization=True"]);
    }
}

#[test]
fn a_header_of_a_length_that_looks_like_a_pickle_is_read() {
    // 0x0280 and 0x4b50 ("PK") as the first two bytes of the length.
    for length in [0x0280, 0x4b50] {
        let header = format!("{:length$}", r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#);
        let folder = Folder::new();
        let path = folder.write("model.safetensors", file_with_header(&header, 1));
        assert_eq!(names(&Checkpoint::open(path).unwrap()), ["a"]);
    }
}

// Folders.

#[test]
fn a_folder_of_pickles_is_refused() {
    for name in
        ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "consolidated.00.pth", "a.ckpt"]
    {
        let folder = Folder::new();
        folder.write(name, b"never opened");
        folder.write("other.safetensors", file_of(&["a"]));
        assert_says(
            &refusal_at(folder.path(), folder.path()),
            &[&format!("`{name}`"), "safe_serialization=True"],
        );
    }
}

#[test]
fn an_adapter_is_refused() {
    let folder = Folder::new();
    let path = folder.write("adapter_model.safetensors", file_of(&["a.lora_A.weight"]));
    folder.write("optimizer.pt", b"never opened");
    for given in [folder.path(), &path] {
        assert_says(&refusal_at(given, given), &["`adapter_model.safetensors` is an adapter", "base"]);
    }
}

#[test]
fn several_files_without_an_index_are_refused() {
    let folder = Folder::new();
    folder.write("model-00002-of-00002.safetensors", file_of(&["b"]));
    folder.write("model-00001-of-00002.safetensors", file_of(&["a"]));
    assert_says(
        &refusal_at(folder.path(), folder.path()),
        &[
            "`model.safetensors.index.json`",
            "found 2 of 2 shards without an index",
            "`model-00001-of-00002.safetensors`, `model-00002-of-00002.safetensors`",
        ],
    );
}

#[test]
fn one_shard_of_several_is_refused() {
    let folder = Folder::new();
    folder.write("model-00001-of-00002.safetensors", file_of(&["a"]));
    assert_says(
        &refusal_at(folder.path(), folder.path()),
        &["found 1 of 2 shards without an index: `model-00001-of-00002.safetensors`"],
    );
}

#[test]
fn a_folder_without_weights_is_refused() {
    let folder = Folder::new();
    assert_says(&refusal_at(folder.path(), folder.path()), &["`model.safetensors`", "found an empty folder"]);
    folder.write("tokenizer.json", "{}");
    folder.write("README.md", "");
    assert_says(&refusal_at(folder.path(), folder.path()), &["found `README.md`, `tokenizer.json`"]);
}

// Headers.

#[test]
fn a_header_that_is_not_json_is_refused() {
    assert_says(&refusal_of_header("{\"a\":", 0), &["the header cannot be read", "EOF", "column 5"]);
    assert_says(&refusal_of_header("{} x", 0), &["the header cannot be read", "trailing characters"]);
}

#[test]
fn a_header_that_does_not_begin_with_a_brace_is_refused() {
    assert_says(&refusal_of_header(" {}", 0), &["begin with `{`", "begins with ` `"]);
    assert_says(&refusal_of_header("[]", 0), &["begin with `{`", "begins with `[`"]);
    assert_says(&refusal_of_header("", 0), &["begin with `{`", "0 bytes"]);
}

#[test]
fn a_header_that_is_not_utf_8_is_refused() {
    let mut bytes = file_with_header(r#"{"a?":{}}"#, 0);
    bytes[8 + 3] = 0xff;
    assert_says(&refusal_of_bytes(&bytes), &["not UTF-8", "byte 3"]);
}

#[test]
fn two_tensors_of_one_name_are_refused() {
    let entry = r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
    let problem = refusal_of_header(&format!(r#"{{"a":{entry},"\u0061":{entry}}}"#), 1);
    assert_says(&problem, &["`a` appears twice"]);
}

#[test]
fn two_values_of_one_key_of_a_tensor_are_refused() {
    let problem =
        refusal_of_header(r#"{"a":{"dtype":"U8","shape":[1],"shape":[2],"data_offsets":[0,1]}}"#, 1);
    assert_says(&problem, &["`a`", "duplicate field `shape`"]);
}

#[test]
fn a_missing_key_of_a_tensor_is_refused() {
    let problem = refusal_of_header(r#"{"a":{"dtype":"U8","shape":[1]}}"#, 1);
    assert_says(&problem, &["`a`", "missing field `data_offsets`"]);
}

#[test]
fn an_unknown_key_of_a_tensor_is_refused() {
    let problem =
        refusal_of_header(r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"strides":[1]}}"#, 1);
    assert_says(&problem, &["`a`", "unknown field `strides`", "`data_offsets`"]);
}

#[test]
fn a_tensor_that_is_not_an_object_is_refused() {
    assert_says(
        &refusal_of_header(r#"{"a":["U8",[1],[0,1]]}"#, 1),
        &["`a`", "sequence", "expected a JSON object"],
    );
    assert_says(&refusal_of_header(r#"{"a":3}"#, 0), &["`a`", "integer `3`", "expected a JSON object"]);
}

#[test]
fn sizes_and_offsets_that_are_not_counts_are_refused() {
    for (value, found) in [
        ("[-1]", "integer `-1`"),
        ("[1.0]", "floating point `1.0`"),
        ("1", "integer `1`"),
        ("[\"1\"]", "string"),
    ] {
        let problem = refusal_of_header(
            &format!(r#"{{"a":{{"dtype":"U8","shape":{value},"data_offsets":[0,1]}}}}"#),
            1,
        );
        assert_says(&problem, &["`a`", found]);
    }
    for (value, found) in [("[0]", "invalid length 1"), ("[0,1,2]", "trailing"), ("[0,-1]", "integer `-1`")] {
        let problem =
            refusal_of_header(&format!(r#"{{"a":{{"dtype":"U8","shape":[1],"data_offsets":{value}}}}}"#), 1);
        assert_says(&problem, &["`a`", found]);
    }
}

#[test]
fn metadata_that_is_not_text_is_refused() {
    let problem = refusal_of_header(r#"{"__metadata__":{"format":1}}"#, 0);
    assert_says(&problem, &["`__metadata__`", "`format`", "integer `1`", "expected a string"]);
}

#[test]
fn an_unknown_dtype_is_refused() {
    let known = r#""b":{"dtype":"U8","shape":[1],"data_offsets":[16,17]}"#;
    let problem = refusal_of_header(
        &format!(r#"{{"a":{{"dtype":"F128","shape":[1],"data_offsets":[0,16]}},{known}}}"#),
        17,
    );
    assert_says(&problem, &["tensor `a`", "dtype `F128`"]);
    // An enum of the crate may also be written as an object.
    let problem = refusal_of_header(r#"{"a":{"dtype":{"U8":null},"shape":[1],"data_offsets":[0,1]}}"#, 1);
    assert_says(&problem, &["`a`", "map", "expected a string"]);
}

#[test]
fn elements_that_fill_no_whole_byte_are_refused() {
    let problem = refusal_of_header(r#"{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}}"#, 2);
    assert_says(&problem, &["tensor `a`", "shape [3] of F4", "12 bits"]);
}

#[test]
fn a_shape_that_overflows_is_refused() {
    for shape in ["[4294967296,4294967296]", "[18446744073709551615]", "[9223372036854775808,2,0]"] {
        let problem = refusal_of_header(
            &format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[0,0]}}}}"#),
            0,
        );
        assert_says(&problem, &["tensor `a`", &shape.replace(',', ", "), "more than any file can hold"]);
    }
}

#[test]
fn a_shape_of_another_size_than_the_bytes_is_refused() {
    let problem = refusal_of_header(r#"{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,12]}}"#, 12);
    assert_says(&problem, &["tensor `a`", "shape [2, 2] of F32 takes 16 bytes", "[0, 12] hold 12"]);
}

#[test]
fn decreasing_offsets_are_refused() {
    let problem = refusal_of_header(r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[8,4]}}"#, 8);
    assert_says(&problem, &["tensor `a`", "[8, 4] end before they begin"]);
}

#[test]
fn overlapping_tensors_are_refused() {
    let header = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},
        "b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#;
    assert_says(
        &refusal_of_header(header, 6),
        &["tensor `b` begins at byte 2", "`a` before it ends at byte 4", "overlap"],
    );
}

#[test]
fn gaps_between_tensors_are_refused() {
    let header = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},
        "b":{"dtype":"U8","shape":[4],"data_offsets":[6,10]}}"#;
    assert_says(
        &refusal_of_header(header, 10),
        &["tensor `b` begins at byte 6", "`a` before it ends at byte 4", "gap"],
    );
    let header = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#;
    assert_says(
        &refusal_of_header(header, 6),
        &["tensor `a` begins at byte 2", "the data begins at byte 0", "gap"],
    );
}

#[test]
fn a_tensor_outside_the_file_is_refused() {
    // 2^64 - 8 bits: the longest tensor whose size in bits can be counted.
    let header =
        r#"{"a":{"dtype":"U8","shape":[2305843009213693951],"data_offsets":[0,2305843009213693951]}}"#;
    let problem = refusal_of_header(header, 4);
    assert_says(&problem, &["tensor `a` is at bytes 0 to 2305843009213693951", "only 4 bytes of data"]);
}

#[test]
fn a_hostile_name_does_not_fill_the_screen() {
    let name = "x".repeat(100_000);
    let problem = refusal_of_header(
        &format!(r#"{{"{name}":{{"dtype":"{name}","shape":[],"data_offsets":[0,1]}}}}"#),
        1,
    );
    assert!(problem.len() < 1000, "{} bytes", problem.len());
    let problem = refusal_of_header(&format!(r#"{{"a":"{name}"}}"#), 1);
    assert!(problem.len() < 1000, "{} bytes", problem.len());
}

// Indexes.

#[test]
fn an_index_that_is_not_an_object_is_refused() {
    assert_says(&refusal_of_index("nonsense"), &["the index cannot be read", "line 1"]);
    assert_says(
        &refusal_of_index(r#"[{"a": "model-1.safetensors"}]"#),
        &["sequence", "expected a JSON object"],
    );
    assert_says(&refusal_of_index("{}"), &["missing field `weight_map`"]);
    assert_says(&refusal_of_index(r#"{"weight_map": []}"#), &["sequence", "expected a JSON object"]);
    assert_says(&refusal_of_index(r#"{"weight_map": {}}"#), &["names no tensor"]);
}

#[test]
fn an_index_of_other_values_than_names_is_refused() {
    let problem = refusal_of_index(r#"{"weight_map": {"a": 3}}"#);
    assert_says(&problem, &["`a`", "integer `3`", "expected a string"]);
}

#[test]
fn an_index_that_names_a_tensor_twice_is_refused() {
    let problem =
        refusal_of_index(r#"{"weight_map": {"a": "model-1.safetensors", "a": "model-2.safetensors"}}"#);
    assert_says(&problem, &["`a` appears twice"]);
}

#[test]
fn an_index_that_points_outside_its_folder_is_refused() {
    for shard in
        ["../model-1.safetensors", "/model-1.safetensors", "sub/../../a", "sub/", ".", "..", "", "..\\\\a"]
    {
        let problem = refusal_of_index(&format!(r#"{{"weight_map": {{"a": "{shard}"}}}}"#));
        assert_says(&problem, &["tensor `a`", &format!("`{shard}`"), "a file beside the index"]);
    }
}

#[test]
fn a_missing_shard_is_refused() {
    let problem =
        refusal_of_index(r#"{"weight_map": {"b": "model-2.safetensors", "c": "model-2.safetensors"}}"#);
    assert_says(&problem, &["`model-2.safetensors` is missing", "2 tensors", "`b`"]);
}

#[test]
fn a_tensor_that_its_shard_lacks_is_refused_only_where_it_is_needed() {
    // As of index files that still name the tensors of a part that was left out; a scan that needs one refuses it.
    let folder = Folder::new();
    folder.write("model-1.safetensors", file_of(&["a"]));
    let index = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-1.safetensors"}}"#;
    folder.write("model.safetensors.index.json", index);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.tensors().map(|(name, _)| name).collect::<Vec<_>>(), ["a"]);
}

#[test]
fn a_pickled_shard_is_refused() {
    let problem = refusal_of_index(r#"{"weight_map": {"a": "pytorch_model.bin"}}"#);
    assert_says(&problem, &["`pytorch_model.bin`", "pickle"]);
}

#[test]
fn a_broken_shard_is_named() {
    let folder = Folder::new();
    let shard = folder.write("shard.safetensors", b"");
    folder.write("model.safetensors.index.json", r#"{"weight_map": {"a": "shard.safetensors"}}"#);
    assert_says(&refusal_at(folder.path(), &shard), &["empty"]);
}

#[test]
fn a_huge_index_is_not_read() {
    let folder = Folder::new();
    let index = folder.path().join("model.safetensors.index.json");
    File::create(&index).unwrap().set_len(1 << 40).unwrap();
    assert_says(&refusal_at(folder.path(), &index), &["1099511627776 bytes", "268435456"]);
}

// Provenance.

#[test]
fn nothing_is_read_past_the_end_of_a_tensor() {
    let folder = Folder::new();
    folder.write("model.safetensors", file_of(&["a", "b"]));
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let tensor = checkpoint.tensor("a").unwrap();
    for (offset, length) in [(0, 5), (1, 4), (4, 1), (5, 0), (u64::MAX, 1), (u64::MAX, 0)] {
        match checkpoint.read_at(tensor, offset, &mut vec![0; length]) {
            Err(Error::Argument(problem)) => {
                let asked = format!("{length} bytes from byte {offset} on");
                assert_says(&problem, &["model.safetensors", "tensor `a`", "has 4", &asked]);
            }
            other => panic!("{offset}, {length}: {other:?}"),
        }
    }
}

#[test]
fn a_file_truncated_while_it_is_read_is_named() {
    let folder = Folder::new();
    let path = folder.write("model.safetensors", file_of(&["a", "b"]));
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let length = fs::metadata(&path).unwrap().len();
    File::options().write(true).open(&path).unwrap().set_len(length - 1).unwrap();
    assert_eq!(bytes_of(&checkpoint, "a"), [0; 4]);
    match checkpoint.read_at(checkpoint.tensor("b").unwrap(), 0, &mut [0; 4]) {
        Err(error) => {
            assert_says(&error.to_string(), &["tensor `b`", &format!("had {length} bytes"), "truncated"]);
            let Error::Truncated { path: at, tensor, opened_length, end } = error else {
                panic!("{error:?}")
            };
            assert_eq!((at, tensor.as_deref()), (path, Some("b")));
            assert_eq!((opened_length, end), (length, length));
        }
        Ok(()) => panic!("nothing was noticed"),
    }
}

// Whatever the bytes.

/// Opens a file of these bytes; if it is accepted, every tensor is inside it, and reads as its bytes.
fn open_bytes(bytes: &[u8]) -> Result<Checkpoint, Error> {
    let folder = Folder::new();
    let path = folder.write("model.safetensors", bytes);
    let checkpoint = Checkpoint::open(&path)?;
    for (name, tensor) in checkpoint.tensors() {
        let Tensor { offset, length, .. } = *tensor;
        let range = offset as usize..(offset + length) as usize;
        assert_eq!(bytes_of(&checkpoint, name), bytes[range]);
    }
    Ok(checkpoint)
}

/// Name, dtype, shape and bytes.
type Content = (String, Dtype, Vec<usize>, Vec<u8>);

/// The tensors as the format's own crate finds them, or `None` if it refuses.
fn oracle(bytes: &[u8]) -> Option<Vec<Content>> {
    let tensors = safetensors::SafeTensors::deserialize(bytes).ok()?;
    let mut tensors: Vec<_> = tensors
        .iter()
        .map(|(name, view)| (name.to_owned(), view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        .collect();
    tensors.sort_by(|left, right| left.0.cmp(&right.0));
    Some(tensors)
}

fn contents(checkpoint: &Checkpoint) -> Vec<Content> {
    checkpoint
        .tensors()
        .map(|(name, tensor)| {
            (name.to_owned(), tensor.dtype, tensor.shape.to_vec(), bytes_of(checkpoint, name))
        })
        .collect()
}

/// Where a number of a valid header is replaced, and by what.
#[derive(Debug, Clone)]
enum Change {
    Size(usize, u64),
    Start(usize, i64),
    End(usize, i64),
    Both(usize, i64),
    DataLength(i64),
    Dtype(usize, &'static str),
}

fn change() -> impl Strategy<Value = Change> {
    let tensor = 0..4usize;
    let shift = prop_oneof![-2..3i64, -9..9i64, Just(1 << 40)];
    prop_oneof![
        (tensor.clone(), prop_oneof![0..9u64, Just(1 << 32), Just(1 << 62)])
            .prop_map(|(at, to)| Change::Size(at, to)),
        (tensor.clone(), shift.clone()).prop_map(|(at, by)| Change::Start(at, by)),
        (tensor.clone(), shift.clone()).prop_map(|(at, by)| Change::End(at, by)),
        (tensor.clone(), shift).prop_map(|(at, by)| Change::Both(at, by)),
        prop_oneof![-2..3i64, -9..9i64].prop_map(Change::DataLength),
        (tensor, prop_oneof![Just("U16"), Just("F4"), Just("F6_E3M2"), Just("BF16"), Just("X")])
            .prop_map(|(at, to)| Change::Dtype(at, to)),
    ]
}

/// A file of tensors `[size, 2]` in this order, with changes.
fn changed_file(sizes: &[u64], changes: &[Change]) -> Vec<u8> {
    let mut start = 0;
    let mut entries: Vec<(&str, u64, i64, i64)> = sizes
        .iter()
        .map(|&size| {
            let end = start + size as i64 * 2;
            let entry = ("I8", size, start, end);
            start = end;
            entry
        })
        .collect();
    let mut data = start;
    for change in changes {
        if let Change::DataLength(by) = change {
            data += by;
        }
        let (Change::Size(at, _)
        | Change::Start(at, _)
        | Change::End(at, _)
        | Change::Both(at, _)
        | Change::Dtype(at, _)) = change
        else {
            continue;
        };
        let Some(entry) = entries.get_mut(*at) else { continue };
        match *change {
            Change::Size(_, to) => entry.1 = to,
            Change::Start(_, by) => entry.2 += by,
            Change::End(_, by) => entry.3 += by,
            Change::Both(_, by) => (entry.2, entry.3) = (entry.2 + by, entry.3 + by),
            Change::Dtype(_, to) => entry.0 = to,
            Change::DataLength(_) => {}
        }
    }
    let entries: Vec<String> = entries
        .iter()
        .enumerate()
        .map(|(number, (dtype, size, start, end))| {
            format!(r#""t{number}":{{"dtype":"{dtype}","shape":[{size},2],"data_offsets":[{start},{end}]}}"#)
        })
        .collect();
    file_with_header(&format!("{{{}}}", entries.join(",")), data.max(0) as usize)
}

const HEADER: &str = r#"{"__metadata__":{"format":"pt"},
"a.weight":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},
"b.weight":{"dtype":"BF16","shape":[3],"data_offsets":[16,22]}}"#;

/// Any byte, more often one that a header is made of.
fn header_byte() -> impl Strategy<Value = u8> {
    prop_oneof![any::<u8>(), prop::sample::select(b"{}[]\":,0123456789 -e.\\ab".to_vec())]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = open_bytes(&bytes);
    }

    #[test]
    fn arbitrary_headers_never_panic(header in r#"\{[{}\[\]":,0-9a-z\\ -]{0,40}\}?"#, data in 0..20usize) {
        let _ = open_bytes(&file_with_header(&header, data));
    }

    #[test]
    fn a_header_with_other_bytes_is_read_as_its_crate_reads_it_or_refused(
        edits in prop::collection::vec((0..HEADER.len(), header_byte()), 0..3),
        data in prop_oneof![4 => Just(22usize), 1 => 0..40usize],
    ) {
        let mut bytes = file_with_header(HEADER, data);
        for (position, byte) in edits {
            bytes[8 + position] = byte;
        }
        if let Ok(checkpoint) = open_bytes(&bytes) {
            prop_assert_eq!(Some(contents(&checkpoint)), oracle(&bytes));
        }
    }

    #[test]
    fn other_numbers_are_accepted_exactly_when_the_crate_accepts_them(
        sizes in prop::collection::vec(0..5u64, 0..4),
        changes in prop::collection::vec(change(), 0..3),
    ) {
        let bytes = changed_file(&sizes, &changes);
        let found = open_bytes(&bytes);
        prop_assert_eq!(found.as_ref().ok().map(contents), oracle(&bytes), "{:?}", found.err());
    }

    #[test]
    fn arbitrary_indexes_never_panic(text in r#"\{"weight_map":[{}\[\]":,0-9a-z\\. /]{0,40}\}?"#) {
        let folder = Folder::new();
        folder.write("a", file_of(&["a"]));
        folder.write("model.safetensors.index.json", text);
        if let Ok(checkpoint) = Checkpoint::open(folder.path()) {
            prop_assert!(checkpoint.files().all(|path| path.parent() == Some(folder.path())));
        }
    }
}
