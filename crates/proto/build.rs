//! Compiles the contract in `proto/` with protox: no `protoc` to install.

use std::path::PathBuf;

use prost::Message;

const FILES: [&str; 2] = ["gitstafette/v1/gitstafette.proto", "info/gitstafette_info.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // At run time: a build script that was built in another checkout and copied would read that one's files.
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    let descriptors = protox::compile(FILES, [&root])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".gitstafette.v1")
        .build_transport(false)
        // Who implements a part of the service (a test's server) answers the rest with UNIMPLEMENTED.
        .generate_default_stubs(true)
        .compile_fds(descriptors)?;
    println!("cargo::rerun-if-changed={}", root.display());
    Ok(())
}
