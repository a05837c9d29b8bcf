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
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../target/bpf/bpfel-unknown-none/release/portcullis-ebpf")
}
