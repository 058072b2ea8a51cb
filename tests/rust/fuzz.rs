//! Gives the inputs in `fuzz/corpus/` to the fuzz targets: seeds, and what once failed.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

#[path = "../../fuzz/src/lib.rs"]
#[allow(unreachable_pub)] // it is a crate of its own for the fuzzer
mod targets;

#[test]
fn no_input_of_the_corpus_fails() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (target, run) in targets::TARGETS {
        let (mut count, mut read) = (0, 0);
        for entry in fs::read_dir(corpus.join(target)).unwrap() {
            let path = entry.unwrap().path();
            let input = fs::read(&path).unwrap();
            let was_read = catch_unwind(AssertUnwindSafe(|| run(&input)));
            read += usize::from(was_read.unwrap_or_else(|_| panic!("{} failed", path.display())));
            count += 1;
        }
        // Targets whose inputs are all refused would test little.
        assert!(3 * read > count, "of {count} inputs of {target}, only {read} are read");
    }
}
