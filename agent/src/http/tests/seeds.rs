//! The fuzzer's seeds, and inputs that once made it fail.

use std::path::Path;

use crate::http::{fuzz_entry, fuzz_http2_entry};

/// Folders with inputs, and what reads them.
type Target = (&'static [&'static str], fn(&[u8]));

#[test]
fn seeds_and_regressions_hold() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz");
    let targets: [Target; 2] = [
        (&["seeds/http1", "regressions/http1"], fuzz_entry),
        (&["seeds/http2", "regressions/http2"], fuzz_http2_entry),
    ];
    for (folders, entry_point) in targets {
        let mut inputs = 0;
        for folder in folders {
            for entry in std::fs::read_dir(fuzz.join(folder)).unwrap() {
                let path = entry.unwrap().path();
                // Names the input if it panics.
                println!("{}", path.display());
                entry_point(&std::fs::read(&path).unwrap());
                inputs += 1;
            }
        }
        assert!(inputs >= 8, "{inputs} inputs in {folders:?}");
    }
}
