//! The layout of a released program, for linkers that can arrange it.
//!
//! A page of a program counts as memory of its process, and the kernel maps 64 KiB around each page that is touched.
//! Functions that run in every process are spread over the whole program by themselves, so most of it is mapped
//! although little of it ever runs. Put side by side they fill a few of these windows only.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// Puts the functions that the file lists (one symbol a line) first, in this order. Names that are not in the program,
/// after a change or with another compiler, are passed over. With `ROADSTEAD_PACKED=1` relative relocations are packed
/// too: 1.2 MiB less, for programs that run where the C library is glibc 2.36 or newer, and nowhere else.
pub(crate) fn arrange(order: &str) {
    println!("cargo::rerun-if-changed={order}");
    for name in ["CARGO_ENCODED_RUSTFLAGS", "RUSTC_LINKER", "ROADSTEAD_PACKED"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    println!("cargo::rerun-if-env-changed={}", linker_variable());
    if !released() || !linked_by_lld() {
        return;
    }
    let folder = env::var("CARGO_MANIFEST_DIR").expect("cargo names the folder of the manifest");
    let order = Path::new(&folder).join(order);
    link_arg(&format!("--symbol-ordering-file={}", order.display()));
    link_arg("--no-warn-symbol-ordering");
    if env::var("ROADSTEAD_PACKED").as_deref() == Ok("1") {
        link_arg("-z,pack-relative-relocs");
    }
}

fn link_arg(arg: &str) {
    println!("cargo::rustc-link-arg-bins=-Wl,{arg}");
}

fn released() -> bool {
    env::var("PROFILE").as_deref() == Ok("release")
}

/// How somebody chooses another linker for the target.
fn linker_variable() -> String {
    let target = env::var("TARGET").unwrap_or_default();
    format!("CARGO_TARGET_{}_LINKER", target.to_uppercase().replace('-', "_"))
}

/// Whether the linker is the toolchain's own lld, which takes the list; others end with an error at it. It is the
/// default for this target since Rust 1.90, in toolchains that bring it, unless somebody chose another.
fn linked_by_lld() -> bool {
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    let chosen = env::var_os("RUSTC_LINKER").is_some()
        || env::var_os(linker_variable()).is_some()
        || ["linker", "fuse-ld"].iter().any(|word| flags.contains(word));
    env::var("TARGET").as_deref() == Ok("x86_64-unknown-linux-gnu")
        && !chosen
        && own_lld().is_some_and(|lld| lld.exists())
}

/// Where a toolchain that links by its own lld keeps it.
fn own_lld() -> Option<PathBuf> {
    let rustc = env::var_os("RUSTC")?;
    let said = Command::new(rustc).args(["--print", "sysroot"]).output().ok()?;
    let sysroot = String::from_utf8(said.stdout).ok()?;
    let own = "lib/rustlib/x86_64-unknown-linux-gnu/bin/gcc-ld/ld.lld";
    Some(Path::new(sysroot.trim()).join(own))
}
