//! The fuzzer's seeds, and inputs that once made it fail.

use std::path::Path;

use crate::http::fuzz_entry;

#[test]
fn seeds_and_regressions_hold() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz");
    let mut inputs = 0;
    for folder in ["seeds/http1", "regressions/http1"] {
        for entry in std::fs::read_dir(fuzz.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            // Names the input if it panics.
            println!("{}", path.display());
            fuzz_entry(&std::fs::read(&path).unwrap());
            inputs += 1;
        }
    }
    assert!(inputs >= 8, "{inputs} inputs");
}
