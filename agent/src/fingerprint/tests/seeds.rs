//! The fuzzers' seeds, and inputs that once made them fail.

use std::path::Path;

use crate::fingerprint::{fuzz, quic};

fn replay(target: &str, run: fn(&[u8]), at_least: usize) {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz");
    let mut inputs = 0;
    for folder in [format!("seeds/{target}"), format!("regressions/{target}")] {
        // There are no regressions at first.
        let Ok(entries) = std::fs::read_dir(fuzz.join(folder)) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            // Names the input if it panics.
            println!("{}", path.display());
            run(&std::fs::read(&path).unwrap());
            inputs += 1;
        }
    }
    assert!(inputs >= at_least, "{inputs} inputs");
}

#[test]
fn seeds_and_regressions_of_hellos_hold() {
    replay("client_hello", fuzz::client_hello, 7);
}

#[test]
fn seeds_and_regressions_of_quic_hold() {
    replay("quic", quic::fuzz::quic, 9);
}
