//! Makes one access to a file or one reservation of memory fail, in tests.

#[cfg(test)]
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many of them still succeed.
#[cfg(test)]
static LEFT: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Whether the access or the reservation that asks is to fail.
#[cfg(test)]
pub(crate) fn is_due() -> bool {
    let count_down = |left: usize| (left != usize::MAX).then(|| left.checked_sub(1).unwrap_or(usize::MAX));
    LEFT.fetch_update(Ordering::SeqCst, Ordering::SeqCst, count_down) == Ok(0)
}

/// Whether the access or the reservation that asks is to fail.
#[cfg(not(test))]
pub(crate) fn is_due() -> bool {
    false
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::process::Command;

    use safetensors::Dtype;
    use safetensors::tensor::TensorView;

    use super::*;
    use crate::Error;
    use crate::progress::Progress;
    use crate::scan::{Form, ModelPath, Options, scan};

    const HIDDEN: usize = 8;
    const CONFIG: &str = r#"{"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 2, "hidden_size": 8}"#;
    const ADAPTER: &str = r#"{"peft_type": "LORA", "r": 1, "lora_alpha": 1, "rank_pattern": {"v_proj": 1}}"#;

    fn write(path: &Path, tensors: &[(String, [usize; 2])]) {
        let bytes: Vec<u8> = (0..1000_u16).flat_map(|number| f32::from(number % 91).to_le_bytes()).collect();
        let view = |shape: [usize; 2]| {
            TensorView::new(Dtype::F32, shape.to_vec(), &bytes[..4 * shape[0] * shape[1]]).unwrap()
        };
        let views = tensors.iter().map(|(name, shape)| (name, view(*shape)));
        fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
    }

    /// Writes a checkpoint of two shards, and an adapter of it.
    fn write_pair(folder: &Path) -> (ModelPath, ModelPath) {
        let (base, adapter) = (folder.join("base"), folder.join("adapter"));
        let (mut index, mut factors) = (Vec::new(), Vec::new());
        for made in [&base, &adapter] {
            fs::create_dir(made).unwrap();
        }
        for layer in 0..2 {
            let module = |matrix: &str| format!("model.layers.{layer}.self_attn.{matrix}_proj");
            let shard: Vec<_> = [("q", 4), ("k", 2), ("v", 2)]
                .map(|(matrix, rows)| (format!("{}.weight", module(matrix)), [rows, HIDDEN]))
                .into();
            write(&base.join(format!("{layer}.safetensors")), &shard);
            index.extend(shard.iter().map(|(name, _)| format!(r#""{name}": "{layer}.safetensors""#)));
            factors.push((format!("base_model.model.{}.lora_A.weight", module("v")), [1, HIDDEN]));
            factors.push((format!("base_model.model.{}.lora_B.weight", module("v")), [2, 1]));
        }
        let index = format!(r#"{{"weight_map": {{{}}}}}"#, index.join(", "));
        fs::write(base.join("model.safetensors.index.json"), index).unwrap();
        fs::write(base.join("config.json"), CONFIG).unwrap();
        write(&adapter.join("adapter_model.safetensors"), &factors);
        fs::write(adapter.join("adapter_config.json"), ADAPTER).unwrap();
        let adapted = ModelPath { checkpoint: (&base).into(), adapter: Some((&adapter).into()) };
        ((&base).into(), adapted)
    }

    fn open_files() -> Option<usize> {
        fs::read_dir("/proc/self/fd").ok().map(Iterator::count)
    }

    /// Runs in a process of its own, since whatever fails is to be its own.
    #[test]
    fn a_scan_of_which_any_access_fails_is_an_error_and_the_next_one_works() {
        const ALONE: &str = "ALPS_FAILING_TEST_ALONE";
        if std::env::var_os(ALONE).is_none() {
            let name = "failing::tests::a_scan_of_which_any_access_fails_is_an_error_and_the_next_one_works";
            let mut alone = Command::new(std::env::current_exe().unwrap());
            let ran = alone.args([name, "--exact", "--test-threads=1"]).env(ALONE, "1").output().unwrap();
            let said = String::from_utf8_lossy(&ran.stdout);
            assert!(ran.status.success() && said.contains("1 passed"), "{said}");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let (base, tuned) = write_pair(folder.path());
        let ways = [
            (true, 1, Form::Qkv),
            (false, 1, Form::Qkv),
            (false, 3, Form::Qkv),
            (false, 1, Form::Product),
            (false, 3, Form::Product),
        ];
        for (mmap, threads, form) in ways {
            let options = Options { mmap, threads: Some(threads), form, ..Options::default() };
            let run = || scan(base.clone(), tuned.clone(), &options, &Progress::default());
            let values = |scores: crate::scan::Scores| format!("{:?}", scores.statistics);
            let expected = values(run().unwrap());
            let files = open_files();
            let mut failed = 0;
            loop {
                LEFT.store(failed, Ordering::SeqCst);
                let scanned = run();
                if LEFT.swap(usize::MAX, Ordering::SeqCst) != usize::MAX {
                    break; // it had fewer accesses
                }
                match scanned {
                    Err(Error::Io { source, .. }) => {
                        let said = source.to_string();
                        assert!(
                            said == "injected" || said.contains("bytes of memory were asked for"),
                            "{said}"
                        );
                    }
                    Err(Error::Model { problem, .. }) => {
                        assert!(problem.contains("bytes of memory were asked for"), "{problem}");
                    }
                    Err(error) => panic!("access {failed}: {error}"),
                    Ok(_) => panic!("access {failed} failed without a word"),
                }
                assert_eq!(values(run().unwrap()), expected);
                assert_eq!(open_files(), files);
                failed += 1;
            }
            assert!(failed > 40, "{failed}");
        }
    }
}
