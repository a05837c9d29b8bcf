#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| portcullis::http::fuzz_http2_entry(input));
