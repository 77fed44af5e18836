//! Compiles the fleet protocol with a protobuf compiler written in Rust, so that a build needs no `protoc`.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(["proto/roadstead/fleet/v1/fleet.proto"], ["proto"])?;
    // What passes through is shared, not copied.
    let package = ".roadstead.fleet.v1";
    tonic_prost_build::configure()
        .bytes(format!("{package}.TunnelUp.chunk"))
        .bytes(format!("{package}.TunnelDown.chunk"))
        .bytes(format!("{package}.BlobChunk.data"))
        .bytes(format!("{package}.Upsert.inline"))
        .compile_fds(files)?;
    Ok(())
}
