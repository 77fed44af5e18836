//! The layout of a released program, for linkers that can arrange it.
//!
//! A page of a program counts as memory of its process, and the kernel maps 64 KiB around each page that is touched.
//! Functions that run in every process are spread over the whole program by themselves, so most of it is mapped
//! although little of it ever runs. Put side by side they fill a few of these windows only.

use std::{env, path::Path, process::Command};

/// Since this version the C library reads relative relocations in their packed form.
const PACKED_SINCE: (u32, u32) = (2, 36);

/// Puts the functions that the file lists (one symbol a line) first, in this order, and packs relative relocations.
/// Names that are not in the program, after a change or with another compiler, are passed over.
pub(crate) fn arrange(order: &str) {
    println!("cargo::rerun-if-changed={order}");
    println!("cargo::rerun-if-env-changed=CARGO_ENCODED_RUSTFLAGS");
    if !released() || !linked_by_lld() {
        return;
    }
    let folder = env::var("CARGO_MANIFEST_DIR").expect("cargo names the folder of the manifest");
    let order = Path::new(&folder).join(order);
    link_arg(&format!("--symbol-ordering-file={}", order.display()));
    link_arg("--no-warn-symbol-ordering");
    if c_library() >= Some(PACKED_SINCE) {
        link_arg("-z,pack-relative-relocs");
    }
}

fn link_arg(arg: &str) {
    println!("cargo::rustc-link-arg-bins=-Wl,{arg}");
}

fn released() -> bool {
    env::var("PROFILE").as_deref() == Ok("release")
}

/// Whether the linker is the toolchain's own lld, which it is for this target unless somebody chose another.
fn linked_by_lld() -> bool {
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    let chosen = env::vars().any(|(name, _)| name.starts_with("CARGO_TARGET_") && name.ends_with("_LINKER"));
    env::var("TARGET").as_deref() == Ok("x86_64-unknown-linux-gnu")
        && !chosen
        && !["linker", "fuse-ld"].iter().any(|word| flags.contains(word))
}

/// Version of the C library of the machine that builds; `None` where it is another one or does not say.
fn c_library() -> Option<(u32, u32)> {
    let said = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let text = String::from_utf8(said.stdout).ok()?;
    let (major, minor) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
