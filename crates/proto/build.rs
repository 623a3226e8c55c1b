//! Compiles the `.proto` files with protox, so that no `protoc` is needed.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let files = ["raft.proto", "peer.proto", "admin.proto"];
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure()
        // Entries are sliced out of the receive buffer, not copied.
        .bytes(".kvorum")
        .compile_fds(descriptors)?;
    Ok(())
}
