//! `bulkhead-lab` as a person uses it: up, exec, down; demo; nothing left behind.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use bulkhead_tests::LabError;
use bulkhead_tests::error::{Tried, promised};
use bulkhead_tests::registry;
use bulkhead_tests::wait;

const LAB: &str = env!("CARGO_BIN_EXE_bulkhead-lab");

fn lab(arguments: &[&str]) -> Result<Output, LabError> {
    Command::new(LAB).args(arguments).output().tried(|| format!("run bulkhead-lab {}", arguments.join(" ")))
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn up_exec_down_and_demo_leave_nothing() -> Result<(), LabError> {
    println!("up");
    let mut up = Command::new(LAB).arg("up").stdout(Stdio::null()).spawn().tried(|| "run bulkhead-lab up".into())?;
    let pid = i32::try_from(up.id()).unwrap_or_default();
    let ours = || registry::running().ok()?.into_iter().find(|lab| lab.pid == pid);
    let running = wait::until("the lab being up", Duration::from_mins(1), || {
        let running = ours()?;
        running.id.dir().join("names").exists().then_some(running)
    })?;
    let number = running.id.number().to_string();
    let exec = |arguments: &[&str]| lab(&[&["exec", "--lab", &number], arguments].concat());
    println!("exec");
    let ping = exec(&["a/web", "ping", "-c", "1", "-W", "2", "198.51.100.1"])?;
    promised(ping.status.success(), || said(&ping))?;
    let forbidden = exec(&["n1", "false"])?;
    promised(forbidden.status.code() == Some(1), || said(&forbidden))?;
    let names = said(&exec(&[])?);
    promised(["n1", "a/web@n1", "infra", "outside"].iter().all(|name| names.contains(name)), || names.clone())?;
    let nobody = exec(&["nobody", "true"])?;
    promised(!nobody.status.success() && said(&nobody).contains("nobody"), || said(&nobody))?;
    println!("down");
    let down = lab(&["down", "--lab", &number])?;
    promised(down.status.success(), || said(&down))?;
    let ended = up.wait().tried(|| "wait for up".into())?;
    promised(ended.success() && !Path::new(&running.id.dir()).exists(), || format!("{ended}, {:?}", running.id))?;
    println!("demo");
    let begin = Instant::now();
    let demo = lab(&["demo"])?;
    print!("{}", said(&demo));
    promised(demo.status.success(), || "the demo failed".into())?;
    promised(begin.elapsed() < Duration::from_mins(1), || format!("the demo took {:?}", begin.elapsed()))?;
    promised(registry::running()?.iter().all(|lab| lab.pid != pid), || "a lab is left".into())
}
