#![no_main]

mod bounded;

libfuzzer_sys::fuzz_target!(|input: &[u8]| bounded::run(alps_fuzz::header::run, input));
