#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| portcullis::fingerprint::quic::fuzz::quic(input));
