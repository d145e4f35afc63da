//! Ctrl-C and SIGTERM: nothing is left behind.

use std::thread;

use tokio::signal::unix::{SignalKind, signal};

use crate::error::{LabError, Tried};
use crate::registry::{self, LabId};

/// Waits for SIGINT or SIGTERM.
pub fn wait() -> Result<(), LabError> {
    let what = || "wait for a signal".to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().tried(what)?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).tried(what)?;
        let mut terminate = signal(SignalKind::terminate()).tried(what)?;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        Ok(())
    })
}

/// On a signal the lab is removed and the program ends.
pub fn remove_on_signal(id: LabId) -> Result<(), LabError> {
    let body = move || {
        if wait().is_ok() {
            eprintln!("\nstopped; removing lab {}", id.number());
            let code = if registry::abandon(id).is_ok() { 130 } else { 1 };
            std::process::exit(code);
        }
    };
    thread::Builder::new().name("signals".into()).spawn(body).map(drop).tried(|| "start a thread".into())
}
