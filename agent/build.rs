//! Finds the eBPF object that `cargo xtask build` made, for `kernel::load` to include.

use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-env-changed=PORTCULLIS_EBPF_OBJECT");
    let object =
        std::env::var_os("PORTCULLIS_EBPF_OBJECT").map_or_else(default_object, PathBuf::from);
    println!("cargo::rerun-if-changed={}", object.display());
    if !object.is_file() {
        println!(
            "cargo::error=there is no eBPF object at {}: run `cargo xtask build` instead of `cargo build`, \
             or once before it",
            object.display()
        );
        return;
    }
    println!("cargo::rustc-env=PORTCULLIS_EBPF_OBJECT={}", object.display());
}

fn default_object() -> PathBuf {
    // As it is now, not when this script was compiled: a target directory may have been copied.
    let here = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default();
    PathBuf::from(here).join("../target/bpf/bpfel-unknown-none/release/portcullis-ebpf")
}
