//! Compiles the eBPF programs with clang and turns `bpf/reasons.h` into the agent's list of drop reasons.

use std::error::Error;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=bpf");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let arch = env::var("CARGO_CFG_TARGET_ARCH")?;
    let object = out.join("datapath.bpf.o");
    let status = Command::new(env::var("CLANG").unwrap_or_else(|_| "clang".into()))
        .args(["-g", "-O2", "-target", "bpf", "-mcpu=v3", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"])
        .arg(format!("-I/usr/include/{arch}-linux-gnu"))
        .args(["-c", "bpf/datapath.bpf.c", "-o"])
        .arg(&object)
        .status()
        .map_err(|error| format!("clang cannot be started ({error}); run `make setup`, or name it in CLANG"))?;
    if !status.success() {
        return Err("clang could not compile agent/bpf (is libbpf-dev installed? `make setup` does it)".into());
    }
    fs::write(out.join("reasons.rs"), reasons(&fs::read_to_string("bpf/reasons.h")?)?)?;
    Ok(())
}

/// `REASON(1, NAME, "counter", "meaning")`, one a line, as entries of a Rust array.
fn reasons(header: &str) -> Result<String, Box<dyn Error>> {
    let mut list = String::from("&[\n");
    for line in header.lines().filter_map(|line| line.strip_prefix("REASON(")) {
        let fields: Vec<&str> = line.trim_end_matches(')').splitn(4, ", ").collect();
        let [number, _, counter, meaning] = fields[..] else {
            return Err(format!("bpf/reasons.h: cannot read `{line}`").into());
        };
        writeln!(list, "    Reason {{ number: {number}, counter: {counter}, meaning: {meaning} }},")?;
    }
    Ok(list + "]\n")
}
