#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| portcullis::capture::go::fuzz::go(input));
