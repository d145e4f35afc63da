//! Where and when a run was made: figures of another machine, kernel or commit are not comparable.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

/// The surroundings of a run.
#[derive(Debug)]
pub struct Machine {
    processor: String,
    cores: usize,
    memory_mib: u64,
    load: f64,
    kernel: String,
    commit: String,
    date: String,
}

impl Machine {
    /// Looks around. What cannot be found out is `unknown`.
    pub fn look() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let commit = printed("git", &["rev-parse", "--short=12", "HEAD"]);
        let changed = printed("git", &["status", "--porcelain", "--untracked-files=no"]);
        Self {
            processor: field(&cpuinfo, "model name").unwrap_or_else(|| "unknown".into()),
            cores: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            memory_mib: field(&meminfo, "MemTotal").and_then(|text| kibibytes(&text)).unwrap_or_default() / 1024,
            load: load(&fs::read_to_string("/proc/loadavg").unwrap_or_default()),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            commit: match (commit, changed) {
                (None, _) => "unknown".into(),
                (Some(commit), Some(changed)) if !changed.is_empty() => format!("{commit} and changes"),
                (Some(commit), _) => commit,
            },
            date: printed("date", &["-u", "+%Y-%m-%dT%H:%M:%SZ"]).unwrap_or_else(|| "unknown".into()),
        }
    }

    /// What a reader must know about the figures, if others kept the machine busy when the run began.
    pub fn caution(&self) -> Option<String> {
        let cores = u32::try_from(self.cores).unwrap_or(u32::MAX);
        let busy = self.load > f64::from(cores) / 2.0;
        busy.then(|| {
            format!(
                "the machine was busy before the run (load {} on {cores} cores): run it again on a quiet one before you \
                 believe a single call's ratio",
                self.load
            )
        })
    }

    /// All but the rows of the result file.
    pub fn json(&self) -> Value {
        json!({
            "machine": {"processor": self.processor, "cores": self.cores, "memoryMiB": self.memory_mib},
            "loadBefore": self.load,
            "kernel": self.kernel,
            "commit": self.commit,
            "date": self.date,
        })
    }
}

/// The value of the first line `name: value`.
pub fn field(text: &str, name: &str) -> Option<String> {
    let values = text.lines().filter_map(|line| line.split_once(':'));
    values.into_iter().find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned())
}

/// `123 kB` as /proc writes it.
pub fn kibibytes(text: &str) -> Option<u64> {
    text.strip_suffix("kB")?.trim().parse().ok()
}

/// The first number of /proc/loadavg: processes that ran or wanted to in the last minute.
fn load(text: &str) -> f64 {
    text.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or_default()
}

fn printed(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_proc_are_read() {
        let text = "Name:\tx\nVmRSS:\t   1234 kB\n";
        assert_eq!(field(text, "VmRSS").and_then(|text| kibibytes(&text)), Some(1234));
        assert_eq!(field(text, "VmHWM"), None);
        assert_eq!(kibibytes("12 MB"), None);
        assert_eq!(load("8.65 7.07 5.46 3/412 999\n").to_bits(), 8.65_f64.to_bits());
    }
}
